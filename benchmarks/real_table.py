"""Tables and figures of `real.py`, from the files in results/real."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import in_words, put_between
from real_runs import read
from smolmoe.reports import drawing
from smolmoe.reports.names import style

DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = {"bleu": "BLEU", "gleu": "GLEU", "sari": "SARI", "exact_match": "exact match"}
LOOKS = {"before": "before training", "after-routers": "after the router stage", "after": "after the joint stage"}
Values = Mapping[str, Any]


def write_results() -> None:
    """Put all tables into docs/reference/results.md, between its markers, and the figures into docs/images."""
    put_between(DOCS / "reference" / "results.md", "real", page())
    named = read("experts")
    if named is not None:
        plot_routing(DOCS / "images" / "real-routing.png", named)
        plot_losses(DOCS / "images" / "real-losses.png", named["compare"])
    print(page())


def page() -> str:
    """The tables of all parts that have been measured."""
    parts: dict[str, Callable[[Values], list[str]]] = {
        "exact": exact,
        "experts": experts,
        "grammar": grammar,
        "distill": distill,
        "extract": extract,
        "gguf": gguf,
    }
    found = {part: values for part in parts if (values := read(part))}
    lines = [line for part, values in found.items() for line in (*parts[part](values), "")]
    machine = next(iter(found.values()))["machine"]
    return "\n".join([*lines, f"Measured on {in_words(machine, 'commit')}; one thread, seed 0."])


def head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def spanned(value: float, low: float, high: float, form: str = "+.4f") -> str:
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


# -- exactness -------------------------------------------------------------------------------------------------------


def exact(found: Values) -> list[str]:
    columns = ("request", "class", "claim", "parameters", "largest difference of a logit", "loss, difference", "top-1")
    lines = ["**Exactness.** The files as written, read by transformers, against the dense model:", ""]
    lines += head(*columns, "holds")
    for name, request in found["requests"].items():
        lines.append(_refused(name, request) if "refused" in request else _converted(name, request))
    return lines


def _refused(name: str, request: Values) -> str:
    return row(name, f"refused: {request['refused']}", *[""] * 6)


def _converted(name: str, request: Values) -> str:
    logits, checks = request["logits"], request["checks"]
    failed = [check["name"] for check in checks if not check["passed"]]
    holds = f"yes, {len(checks)} of {len(checks)} checks" if not failed else f"**no**: {', '.join(failed)}"
    if request["claim"]["kind"] == "none":
        holds = "nothing is claimed"
    return row(
        name,
        request["target"],
        request["claim"]["kind"],
        f"{request['parameters']['moe']['total'] / 1e6:.0f} M",
        f"{logits['max_abs'] / logits['max_logit']:.1e} of the largest",
        f"{logits['delta_loss']:+.1e}" if abs(logits["delta_loss"]) < 1e-4 else f"{logits['delta_loss']:+.4f}",
        f"{logits['top1']:.1%}",
        holds,
    )


# -- named experts ---------------------------------------------------------------------------------------------------


def experts(found: Values) -> list[str]:
    lines = ["**Named experts.** Five, one per domain and one per token.", ""]
    lines += _trainings(found["trainings"])
    lines += ["", *_accuracy({look: found[look] for look in LOOKS if look in found})]
    if "route" in found:
        lines += ["", *_route(found["route"])]
    if "compare" in found:
        lines += ["", *losses(found["compare"])]
    if "after" in found and found["after"]["losses"]:
        lines += ["", *_knocked_out(found["after"])]
    return lines


def _trainings(trainings: Values) -> list[str]:
    names = {"routers": "router stage", "joint": "joint stage", "dense": "dense model, the joint stage's text"}
    lines = head("training", "steps", "tokens", "minutes", "tokens/s")
    for run, values in trainings.items():
        seconds, tokens = values["train_seconds"], values["tokens"]
        cells = (values["steps"], f"{tokens:,}", f"{seconds / 60:.0f}", f"{tokens / seconds:.0f}")
        lines.append(row(names.get(run, run), *cells))
    return lines


def _accuracy(looks: Mapping[str, Values]) -> list[str]:
    first = next(iter(looks.values()))
    domains, layers = first["domains"], first["last_third"]["layers"]
    lines = [
        f"Accuracy on held-out documents, layers {layers[0]} to {layers[-1]} (the last third); five domains, so 20% is "
        "chance. All: 95% interval over documents.",
        "",
        *head("", "all", *domains),
    ]
    for look, values in looks.items():
        last = values["last_third"]
        span = last["interval"]
        mean = f"{span['value']:.1%} [{span['low']:.1%}, {span['high']:.1%}]"
        lines.append(row(f"tokens, {LOOKS[look]}", mean, *(f"{share:.1%}" for share in last["per_domain"])))
    last = list(looks.values())[-1]["last_third"]
    for key, name in (("dense_ceiling", "dense model's FFN inputs"), ("ceiling", "MoE's router inputs")):
        if last[key] is not None:
            cells = (f"{share:.1%}" for share in last[f"{key}_per_domain"])
            lines.append(row(f"tokens, linear probe on the {name}", f"{last[key]:.1%}", *cells))
    for look, values in looks.items():
        documents = values["accuracy"]["documents"]
        right = [
            round(share * documents[domain])
            for share, domain in zip(values["last_third"]["document_majority"], domains, strict=True)
        ]
        cells = (f"{one} of {documents[domain]}" for one, domain in zip(right, domains, strict=True))
        total = share_of(sum(right), sum(documents[domain] for domain in domains))
        lines.append(row(f"documents, {LOOKS[look]}", total, *cells))
    return lines


def share_of(right: int, of: int) -> str:
    """A share with its 95% interval (Wilson's)."""
    z, share = 1.96, right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z / (1 + z * z / of) * (share * (1 - share) / of + z * z / (4 * of * of)) ** 0.5
    return f"{share:.1%} [{middle - reach:.1%}, {middle + reach:.1%}]"


def _route(choices: Mapping[str, Sequence[str]]) -> list[str]:
    domains = sorted(choices)
    lines = [
        "`smolmoe route` on the beginning of held-out documents, after the joint stage: which expert it names.",
        "",
    ]
    lines += head("document", *domains, "right")
    right = 0
    for domain in domains:
        named = [choices[domain].count(name) for name in domains]
        right += choices[domain].count(domain)
        lines.append(row(domain, *named, f"{choices[domain].count(domain)} of {len(choices[domain])}"))
    total = sum(map(len, choices.values()))
    return [*lines, row("all", *[""] * len(domains), share_of(right, total))]


def losses(comparison: Values) -> list[str]:
    """Held-out loss by domain of every model, and the differences with their intervals over documents."""
    text = comparison["text"]
    domains = sorted(text["documents"])
    lines = [
        f"Held-out loss, nats per token, on {sum(text['tokens'].values()):,} tokens of "
        f"{sum(text['documents'].values())} documents; differences with 95% intervals over documents.",
        "",
        *head("", *domains, "all"),
    ]
    for model in comparison["models"]:
        cells = (f"{model['by_domain'][domain]['value']:.4f}" for domain in domains)
        lines.append(row(model["name"], *cells, f"{model['loss']['value']:.4f}"))
    for pair in comparison["pairs"]:
        cells = [_difference(pair["by_domain"][domain]) for domain in domains]
        lines.append(row(f"{pair['first']} - {pair['second']}", *cells, _difference(pair["loss"])))
    return lines


def _difference(found: Values) -> str:
    return spanned(found["value"], found["documents"]["low"], found["documents"]["high"])


def _knocked_out(look: Values) -> list[str]:
    found, domains = look["losses"], look["domains"]
    lines = [
        f"Loss added to each domain without one expert (bold: the domain that suffers most), "
        f"{sum(found['tokens'].values()):,} tokens.",
        "",
        *head("without", *domains),
    ]
    for index, label in enumerate(found["labels"]):
        added = [
            found["knocked_out"][at][index] - found["base"][domain] if found["knocked_out"][at][index] else 0.0
            for at, domain in enumerate(domains)
        ]
        lines.append(row(label, *(f"**{value:+.3f}**" if value == max(added) else f"{value:+.3f}" for value in added)))
    gaps = [
        f"{domain} {spanned(gap['value'], gap['low'], gap['high'], '+.3f')}"
        for domain, gap in zip(domains, found["knocked_out_gap"], strict=True)
        if gap is not None
    ]
    lines += ["", f"Its own expert taken from each domain, with 95% intervals over documents: {', '.join(gaps)}."]
    return lines


# -- grammar ---------------------------------------------------------------------------------------------------------

GRAMMAR = {
    "before": "the model before",
    "dense-sft": "dense, SFT",
    "dense-dpo": "dense, SFT and DPO",
    "moe-sft": "MoE, SFT",
    "moe-dpo": "MoE, SFT and DPO",
}


def grammar(found: Values) -> list[str]:
    scores, rows = found["scores"], found["rows"]
    lines = [
        f"**Grammar correction.** {rows['train']} training rows, {rows['held']} held out; percent, with 95% "
        "intervals over rows.",
        "",
        *head("", *METRICS.values(), "unchanged"),
    ]
    first = next(iter(scores.values()))
    lines.append(_scored("copying the input", first["copy"]))
    if first["human"] is not None:
        lines.append(_scored("a person, compared with the other references", first["human"]))
    lines += [_scored(name, scores[key]["model"]) for key, name in GRAMMAR.items() if key in scores]
    lines += ["", "Minus copying, on the same rows:", "", *head("", *METRICS.values())]
    for key, name in GRAMMAR.items():
        if key in scores:
            gaps = [scores[key]["difference"][metric] for metric in METRICS]
            lines.append(row(name, *(spanned(gap["value"], gap["low"], gap["high"], "+.1f") for gap in gaps)))
    return [*lines, "", *_alignments(found["trainings"])]


def _scored(name: str, scores: Values) -> str:
    cells = [scores["metrics"][metric] for metric in METRICS]
    spans = (f"{cell['value']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]" for cell in cells)
    return row(name, *spans, f"{scores['unchanged']:.0%}")


def _alignments(trainings: Values) -> list[str]:
    lines = head("training", "steps", "minutes", "held-out loss", "router choices changed")
    for key, values in trainings.items():
        loss = f"{values['before']['loss']:.4f} → {values['after']['loss']:.4f}"
        changed = values["drift"]["changed"] if values["drift"] else None
        cells = (values["steps"], f"{values['train_seconds'] / 60:.0f}", loss)
        lines.append(row(GRAMMAR[key], *cells, "" if changed is None else f"{changed:.1%}"))
    return lines


# -- the rest --------------------------------------------------------------------------------------------------------


def distill(found: Values) -> list[str]:
    request, cache = found["request"], found["cache"]
    lines = [
        f"**Distillation.** The dense model's {cache['size']} largest probabilities for {cache['tokens']:,} tokens: "
        f"{cache['bytes_per_token']:.0f} bytes per token, {cache['left_over']:.1%} of the probability outside."
    ]
    if "compare" not in found:
        return [f"{lines[0]} The trainings with them have not been measured."]
    tokens, comparison = found["trainings"]["text"]["tokens"], found["compare"]
    lines += [
        f"{request['experts']} experts, one per token, a share of {request['drop_ratio']} of each re-initialised; "
        f"{tokens:,} tokens per training, {sum(comparison['text']['tokens'].values()):,} tokens of "
        f"{sum(comparison['text']['documents'].values())} documents held out, with 95% intervals over documents.",
        "",
        *head("", "held-out loss", "KL from the teacher, nats per token", "top-1 agreement with the teacher"),
    ]
    for model in comparison["models"]:
        agreement = model["agreement"]
        same = ("", "")
        if agreement is not None:
            same = (_over_documents(agreement["kl"], ".3f"), _over_documents(agreement["top1"], ".1%"))
        lines.append(row(model["name"], f"{model['loss']['value']:.4f}", *same))
    pair = comparison["pairs"][-1]
    return [*lines, "", f"{pair['first']} minus {pair['second']}: {_difference(pair['loss'])} nats per token."]


def _over_documents(found: Values, form: str) -> str:
    return spanned(found["value"], found["documents"]["low"], found["documents"]["high"], form)


def extract(found: Values) -> list[str]:
    before = next(iter(found["experts"].values()))["before"]
    sizes = {"the MoE": before} | {f"expert {name}": made["after"] for name, made in found["experts"].items()}
    said = [
        f"{name} {size['parameters'] / 1e6:.0f} M parameters in {size['nbytes'] / 1e6:.0f} MB"
        for name, size in sizes.items()
    ]
    return [f"**Extraction of one expert** as a dense model: {', '.join(said)}.", "", *losses(found["compare"])]


def gguf(found: Values) -> list[str]:
    verified = found["verify"]
    lines = [f"**GGUF.** The specialised MoE in llama.cpp ({verified['engine']} {verified['engine_version']}): "]
    difference = verified["difference"]
    if difference is None:
        lines[0] += f"{verified['verdict']}: {verified['reason']}"
    else:
        lines[0] += (
            f"{verified['verdict']}; perplexity {difference['engine_perplexity']:.4f}, in transformers "
            f"{difference['perplexity']:.4f}; log-probabilities differ by at most {difference['max_abs']:.1e} nats; "
            f"{difference['greedy_equal']} of {difference['greedy_tokens']} greedy tokens equal."
        )
    sizes = ", ".join(f"{quant} {size / 1e6:.0f} MB" for quant, size in found["bytes"].items())
    return [*lines, "", f"File sizes: {sizes}."] if sizes else lines


# -- figures ---------------------------------------------------------------------------------------------------------


def plot_routing(path: Path, found: Values) -> None:
    """Share of each expert in each domain's tokens, mean over the last third of the layers, at three times."""
    from matplotlib.figure import Figure

    looks = {look: found[look] for look in LOOKS if look in found}
    figure = Figure(figsize=(4 * len(looks), 3.8), layout="constrained")
    for axes, (look, values) in zip(figure.subplots(1, len(looks), squeeze=False)[0], looks.items(), strict=True):
        domains = values["domains"]
        layers = values["matrix"][-len(values["last_third"]["layers"]) :]
        shares = [
            [statistics.mean(layer[at][expert] for layer in layers) for expert in range(len(layers[0][at]))]
            for at in range(len(domains))
        ]
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for at, cells in enumerate(shares):
            for expert, share in enumerate(cells):
                colour = "white" if share > 0.6 else "black"
                axes.text(expert, at, f"{share:.0%}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(shares[0])), domains[: len(shares[0])], rotation=30)
        axes.set_yticks(range(len(domains)), domains)
        axes.set(title=LOOKS[look], xlabel="expert")
    figure.get_axes()[0].set_ylabel("domain of the text")
    figure.savefig(path, dpi=120)


def plot_losses(path: Path, comparison: Values) -> None:
    """Change of each domain's held-out loss, and what of it the MoE gains over the dense model, with intervals."""
    from matplotlib.figure import Figure

    domains = [*sorted(comparison["text"]["documents"]), "all"]
    base = comparison["models"][0]["name"]
    with drawing.look():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        _panels(figure.subplots(1, 2), comparison, domains, base)
        figure.savefig(path, dpi=120)


def _panels(both: Any, comparison: Values, domains: Sequence[str], base: str) -> None:
    left, right = both
    trained = [pair for pair in comparison["pairs"] if pair["second"] == base]
    for place, pair in enumerate(trained):
        _dots(left, pair, domains, (place - (len(trained) - 1) / 2) * 0.2, pair["first"], 1, place)
    left.legend()
    left.set(title="after training minus before", ylabel="held-out loss, nats per token")
    between = next(pair for pair in comparison["pairs"] if base not in (pair["first"], pair["second"]))
    _dots(right, between, domains, 0, "", -1, 0)
    right.set(title=f"{between['second']} minus {between['first']}")
    for axes in (left, right):
        axes.axhline(0, color="grey", linestyle=":", linewidth=1)
        axes.set_xticks(range(len(domains)), domains)


def _dots(axes: Any, pair: Values, domains: Sequence[str], shift: float, label: str, sign: int, place: int) -> None:
    """One dot a domain, with its interval; `sign` -1 turns the difference round."""
    gaps = [pair["loss"] if domain == "all" else pair["by_domain"][domain] for domain in domains]
    values = [sign * gap["value"] for gap in gaps]
    ends = [sorted(sign * gap["documents"][end] for end in ("low", "high")) for gap in gaps]
    reach = [[value - low for value, (low, _) in zip(values, ends, strict=True)]]
    reach.append([high - value for value, (_, high) in zip(values, ends, strict=True)])
    places = [at + shift for at in range(len(domains))]
    axes.errorbar(places, values, yerr=reach, capsize=3, label=label, **{**style(place), "linestyle": "none"})
