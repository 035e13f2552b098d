"""The sections of the report: their blocks, and the command that creates a missing one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smolmoe.core import units
from smolmoe.hub.card import engines, sources
from smolmoe.hub.model_facts import ModelFacts, without_places
from smolmoe.reports.bench_view import bench_figure, bench_label, bench_machine, bench_tables
from smolmoe.reports.blocks import Block, Card, Cards, Chart, Code, Fold, Note, Pairs, Table, Texts, Words
from smolmoe.reports.boundary import boundary_blocks, by_domain_table
from smolmoe.reports.comparison_view import comparison_chart, comparison_rows
from smolmoe.reports.figures import Figure
from smolmoe.reports.names import Looks, colour
from smolmoe.reports.overview import Overview, Probe, Training
from smolmoe.reports.overview_charts import claim_chart, final_chart, final_rows
from smolmoe.reports.page import Section
from smolmoe.reports.plot import plot
from smolmoe.reports.probe_part import details, first_screen, in_report, probe_figures
from smolmoe.reports.sweep_view import needs_chart, sweep_chart, sweep_tables, sweep_words
from smolmoe.reports.tokens import Tokens
from smolmoe.reports.training_curves import History, balance_figure, loss_figure
from smolmoe.results.bench import BenchResult
from smolmoe.results.comparison import Comparison
from smolmoe.results.scaling_law import Sweep

SHOWN = 4  # cards shown before the others are folded


def sections(found: Overview) -> list[Section]:
    """All sections in the order of the page, including missing ones."""
    probe = "smolmoe probe MODEL --data TAGGED.jsonl --out DIR"
    parts: list[tuple[str, str, Callable[[Overview], Sequence[Block]], str]] = [
        ("boundary", "Across the conversion", _boundaries, "smolmoe run fair-baselines"),
        ("experts", "What the experts do", _experts, probe),
        ("tokens", "Token by token", _tokens, probe),
        ("details", "Details on the experts", _details, probe),
        ("comparison", "Comparison", _comparison, "smolmoe compare dense=DENSE moe=MOE --data DATA --out DIR"),
        ("losses", "Losses compared with the dense baselines", _losses, "smolmoe train RECIPE"),
        ("training", "Training", _training, "smolmoe train RECIPE"),
        ("balance", "Load balance and active experts", _balance, "smolmoe train RECIPE --set model.path=MOE"),
        ("sweep", "Loss by training tokens", _sweep, "smolmoe sweep RECIPE --tokens 0.5M,1M,2M,4M,8M"),
        ("speed", "Speed", _speed, "smolmoe bench MODEL --against DENSE --out bench.json"),
        ("claim", "Claim and verification", _claim, "smolmoe upcycle DENSE OUT --experts 8 --top-k 2"),
        ("samples", "Samples", _samples, "smolmoe train RECIPE --set samples.prompts='[Once upon a time]'"),
        ("provenance", "Provenance", _provenance, "smolmoe upcycle DENSE OUT"),
    ]
    return [Section(name, title, make(found), _named(command, found)) for name, title, make, command in parts]


def _named(command: str, found: Overview) -> str:
    """The command with the folders known here."""
    moe = next((str(model.folder) for _, model in found.moes), None)
    dense = next((str(other.folder) for other in found.models_it_was_made_of), None)
    known = {"MODEL": moe, "MOE": moe, "DENSE": dense}
    quoted = {word: shlex.quote(folder) for word, folder in known.items() if folder}
    return re.sub(r"\b[A-Z]+\b", lambda word: quoted.get(word[0], word[0]), command)


def _some(*charts: Chart | None) -> list[Block]:
    return [chart for chart in charts if chart is not None]


def _folded(items: Sequence[tuple[str, Sequence[Block]]]) -> list[Block]:
    """The first item open, the others folded."""
    if not items:
        return []
    return [*items[0][1], *(Fold(label, blocks) for label, blocks in items[1:])]


# -- models ----------------------------------------------------------------------------------------------------------


def _claim(found: Overview) -> list[Block]:
    claimed = [(label, m) for label, m in found.models if (m.provenance.get("claim") or {}).get("kind") and m.experts]
    if not claimed:
        return []
    cards = [_card(label, model) for label, model in claimed]
    rest: list[Block] = [Fold(f"{len(cards) - SHOWN} more", [Cards(cards[SHOWN:])])] if len(cards) > SHOWN else []
    return [Cards(cards[:SHOWN]), *rest, *_some(claim_chart(claimed[:6], found.looks))]


def _card(label: str, model: ModelFacts) -> Card:
    claim = (model.provenance.get("experts") or {}).get("claim") or model.provenance["claim"]
    verification = model.provenance.get("verification") or (model.provenance.get("experts") or {}).get("measured") or {}
    checks = verification.get("checks") or ()
    tone, verdict = "open", "not verified"
    if verification:
        held = sum(bool(check["passed"]) for check in checks)
        tone = "good" if verification.get("passed") else "bad"
        verdict = f"{'holds' if tone == 'good' else 'does not hold'}: {held} of {len(checks)} checks"
        verdict += " (quick)" if verification.get("mode") == "quick" else ""
    return Card(
        label,
        str(claim.get("kind")),
        str(claim.get("reason") or ""),
        tone,
        verdict,
        _size(model),
        [(check["passed"], check["meaning"], float(check["measured"]), float(check["limit"])) for check in checks],
    )


def _size(model: ModelFacts) -> str:
    parts = [f"{model.parameters.get('total') or model.total:,} parameters"]
    parts += [f"{model.active:,} active"] if model.active else []
    parts += [f"{units.size(model.nbytes)}, {' and '.join(model.dtypes)}"]
    return f"{', '.join(parts)}. {model.architecture}."


# -- conversions and trainings ---------------------------------------------------------------------------------------


def _boundaries(found: Overview) -> list[Block]:
    return _folded(
        [(b.label, boundary_blocks(b, f"boundary-{place}", found.looks)) for place, b in enumerate(found.boundaries)]
    )


def _losses(found: Overview) -> list[Block]:
    done = [[run for run in group if run.summary.get("held_out")] for group in found.groups]
    blocks = _some(*(final_chart(group, f"final-losses-{place}", found.looks) for place, group in enumerate(done)))
    alone = [group[0] for group in done if len(group) == 1]
    if alone:
        blocks += _why_alone(found, alone)
        blocks.append(Table(*final_rows(alone), "Runs without a comparable run"))
    for boundary in found.boundaries:
        if boundary.by_domain:
            blocks.append(by_domain_table(boundary))
    return blocks


def _why_alone(found: Overview, alone: Sequence[Training]) -> list[Block]:
    """Why the losses of these runs are not compared with others."""
    others = [run for run in found.trainings if run.summary.get("held_out")]
    if len(others) < 2:
        return []
    said = []
    for run in alone:
        reasons = {found.kin.why_apart(run.folder, other.folder) for other in others if other is not run}
        said.append(f"{run.label}: {' or '.join(sorted(filter(None, reasons)))}")
    return [Note(f"Not compared with the other runs: their numbers are not comparable. {'; '.join(said)}.")]


def _by_group(found: Overview, make: Callable[[Sequence[History], Looks], Figure | None], name: str) -> list[Block]:
    """A figure for each set of comparable runs; the first is open."""
    items: list[tuple[str, Sequence[Block]]] = []
    for place, group in enumerate(found.groups):
        figure = make([run.history for run in group], found.looks)
        if figure is not None:
            items.append((", ".join(run.label for run in group), [plot(figure.named(f"{name}-{place}"))]))
    return _folded(items)


def _training(found: Overview) -> list[Block]:
    running = [run.label for run in found.trainings if not run.summary]
    note: list[Block] = [Note(f"Not finished: {', '.join(running)}.")] if running else []
    return _by_group(found, loss_figure, "training-curves") + note


def _balance(found: Overview) -> list[Block]:
    return _by_group(found, balance_figure, "balance-curves")


# -- probes ----------------------------------------------------------------------------------------------------------


def shown_probes(found: Overview) -> list[Probe]:
    """The probes, one of a model with named experts first: only the tokens of the first are shown."""
    return sorted(found.probes, key=lambda probe: not any(probe.after.names))


def _probe_parts(found: Overview) -> list[tuple[Probe, list[Figure]]]:
    """The probes with their figures."""
    return [
        (probe, in_report(probe_figures(probe.after, probe.before), probe.model, found.looks, place))
        for place, probe in enumerate(shown_probes(found))
    ]


def _experts(found: Overview) -> list[Block]:
    items: list[tuple[str, Sequence[Block]]] = [
        (probe.label, [Note(f"Probe of {probe.label}.", "hint"), *first_screen(probe.after, figures)])
        for probe, figures in _probe_parts(found)
    ]
    return _folded(items)


def _tokens(found: Overview) -> list[Block]:
    shown = next((probe for probe, _ in _probe_parts(found) if probe.after.result.text), None)
    return [] if shown is None else [Note(f"Probe of {shown.label}.", "hint"), Tokens(shown.after)]


def _details(found: Overview) -> list[Block]:
    parts = _probe_parts(found)
    if len(parts) == 1:
        return details(parts[0][0].after, parts[0][1])
    return [Fold(probe.label, details(probe.after, figures)) for probe, figures in parts]


# -- results ---------------------------------------------------------------------------------------------------------


def _comparison(found: Overview) -> list[Block]:
    parts: list[tuple[str, Sequence[Block]]] = []
    for place, (label, one) in enumerate(found.comparisons):
        warned: list[Block] = [Words(one.warnings, "flags")] if one.warnings else []
        chart = _some(comparison_chart(one, f"comparison-{place}", found.looks))
        table = Table(*comparison_rows(one), "Models compared, with 95% intervals")
        parts.append((label, [Words(one.verdict, "summary"), *warned, *chart, table]))
    return _folded(parts)


def _sweep(found: Overview) -> list[Block]:
    parts: list[tuple[str, Sequence[Block]]] = []
    for place, one in enumerate(found.sweeps):
        charts = _some(sweep_chart(one, f"sweep-{place}", found.looks), needs_chart(one, f"needs-{place}", found.looks))
        parts.append((one.model, [*charts, Words(sweep_words(one)), *sweep_tables(one)]))
    return _folded(parts)


def _speed(found: Overview) -> list[Block]:
    parts: list[tuple[str, Sequence[Block]]] = []
    for place, one in enumerate(bench.result for bench in found.benches):
        chart = plot(bench_figure(one, f"speed-{place}", found.looks))
        parts.append((bench_label(one), [Note(bench_machine(one), "hint"), chart, *bench_tables(one)]))
    return _folded(parts)


# -- samples ---------------------------------------------------------------------------------------------------------


def _samples(found: Overview) -> list[Block]:
    """The continuations of each prompt by all runs that recorded one, side by side."""
    texts: dict[str, list[tuple[str, str, str]]] = {}
    names = [*found.looks.names, *(run.label for run in found.trainings)]
    for run in sorted(found.trainings, key=lambda run: names.index(run.label)):
        for sample in run.summary.get("samples") or ():
            texts.setdefault(sample["prompt"], []).append((run.label, colour(found.looks(run.label)), sample["text"]))
    hint = Note("Greedy continuations at the end of each training; an example, not a measurement.", "hint")
    return [hint, *(Texts(prompt, said) for prompt, said in texts.items())] if texts else []


# -- provenance ------------------------------------------------------------------------------------------------------


def _provenance(found: Overview) -> list[Block]:
    return [
        *(_of_model(label, model) for label, model in found.models),
        *(_of_run(run.label, run.recipe) for run in found.trainings),
        *(_of_result(f"compare: {label}", one) for label, one in found.comparisons),
        *(_of_result(f"sweep: {one.model}", one) for one in found.sweeps),
        *(_of_result(f"bench: {bench_label(one.result)}", one.result) for one in found.benches),
    ]


def _of_model(label: str, model: ModelFacts) -> Fold:
    values = without_places(dict(model.provenance))
    rows: list[tuple[str, Any]] = [("stage", values.get("stage")), ("class", model.architecture)]
    rows += [(f"source, {key}", f"{name}{extra}") for key, name, extra in sources(values)]
    rows += [("seed", values.get("seed")), ("versions", _versions(values.get("versions") or {}))]
    rows += list(engines(model).items())
    return Fold(label, [Pairs(rows), *_again(values.get("command"))], str(values.get("stage") or "model"))


def _of_run(label: str, recipe: Mapping[str, Any]) -> Fold:
    import yaml

    text = yaml.safe_dump(without_places(dict(recipe)), sort_keys=False, allow_unicode=True)
    return Fold(label, [*_again("smolmoe train recipe.yaml"), Code(text, "Save this as `recipe.yaml`.")], "recipe")


def _of_result(label: str, found: Comparison | Sweep | BenchResult) -> Fold:
    versions = _versions(found.versions) or "–"
    return Fold(label, [Pairs([("versions", versions)]), *_again(without_places(found.command))], "result")


def _versions(known: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {version}" for key, version in known.items())


def _again(command: str | None) -> list[Block]:
    return [Code(command, "To reproduce it:")] if command else []
