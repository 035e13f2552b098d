"""A comparison in sentences: which model wins at what, by how much, and the caveats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from smolmoe.core import units
from smolmoe.core.statistics import FEWEST_DOCUMENTS, NO_DIFFERENCE, SMALLEST, side
from smolmoe.core.words import listed
from smolmoe.results.comparison import Difference, Estimate, ModelResult, Pair, Span, TextFacts

EQUAL = 0.02  # relative: trained as long, or costing as much
EQUAL_TIME = 0.05  # relative: two timings of the same
NORMAL = 1.96
FEW_DOCUMENTS = 30


def gap(pairs: Iterable[Pair], first: str, second: str, domain: str | None = None) -> Difference:
    """The loss of `first` minus that of `second`, over all text or in a domain."""
    pair = next(pair for pair in pairs if {pair.first, pair.second} == {first, second})
    found = pair.loss if domain is None else pair.by_domain[domain]
    return found if pair.first == first else found.turned()


# -- who wins --------------------------------------------------------------------------------------------------------


def winners(models: Sequence[ModelResult], pairs: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """Measure -> the models that no other beats; several if no difference is seen.

    A loss is decided by its intervals and its test, a task's score by the standard errors of both, agreement by
    intervals that do not overlap. Costs count as equal within 2%, timings within 5%.
    """
    domains = models[0].by_domain
    found = {"loss": _lowest_loss(models, pairs, None)}
    found |= {f"loss on {domain}": _lowest_loss(models, pairs, domain) for domain in domains}
    costs: dict[str, Callable[[ModelResult], float]] = {
        "parameters": lambda model: model.parameters,
        "active parameters": lambda model: model.active,
        "FLOPs": lambda model: model.flops,
        "disk": lambda model: model.disk,
    }
    found |= {name: _lowest(models, value, EQUAL) for name, value in costs.items()}
    few = any(pair.loss.count < FEWEST_DOCUMENTS for pair in pairs)
    return found | _fastest(models) | _closest(models, few=few) | _best_scores(models)


def _lowest_loss(models: Sequence[ModelResult], pairs: Sequence[Pair], domain: str | None) -> tuple[str, ...]:
    losses = {model.name: (model.loss if domain is None else model.by_domain[domain]).value for model in models}
    best = min(losses, key=losses.__getitem__)
    return tuple(name for name in losses if name == best or not gap(pairs, best, name, domain).is_decided)


def _lowest(models: Sequence[ModelResult], value: Callable[[ModelResult], float], tie: float) -> tuple[str, ...]:
    values = {model.name: value(model) for model in models}
    least = min(values.values())
    return tuple(name for name, found in values.items() if found <= least * (1 + tie))


def _fastest(models: Sequence[ModelResult]) -> dict[str, tuple[str, ...]]:
    speeds = {model.name: model.speed for model in models if model.speed is not None}
    if len(speeds) < len(models):
        return {}
    return {
        "latency": _lowest(models, lambda model: speeds[model.name].latency, EQUAL_TIME),
        "prefill": _lowest(models, lambda model: 1 / speeds[model.name].prefill, EQUAL_TIME),
        "decode": _lowest(models, lambda model: 1 / speeds[model.name].decode, EQUAL_TIME),
        "memory": _lowest(models, lambda model: speeds[model.name].memory, EQUAL),
    }


def _closest(models: Sequence[ModelResult], *, few: bool) -> dict[str, tuple[str, ...]]:
    """The models closest to the base, of at least two. With too `few` documents no model is closer."""
    found = {model.name: model.agreement for model in models if model.agreement is not None}
    if len(found) < 2:
        return {}
    if few:
        return dict.fromkeys(("agreement with the base", "KL to the base"), tuple(found))
    same = {name: agreement.top1 for name, agreement in found.items()}
    kl = {name: agreement.kl for name, agreement in found.items()}
    best_same = max(same, key=lambda name: same[name].value)
    best_kl = min(kl, key=lambda name: kl[name].value)
    return {
        "agreement with the base": tuple(name for name in same if _touch(same[name], same[best_same])),
        "KL to the base": tuple(name for name in kl if _touch(kl[name], kl[best_kl])),
    }


def _touch(a: Estimate, b: Estimate) -> bool:
    return a.documents.low <= b.documents.high and b.documents.low <= a.documents.high


def _best_scores(models: Sequence[ModelResult]) -> dict[str, tuple[str, ...]]:
    found = {}
    for task, metrics in models[0].tasks.items():
        for metric, first in metrics.items():
            scores = {model.name: model.tasks[task][metric] for model in models}
            sign = 1 if first.higher_is_better else -1
            best = max(scores.values(), key=lambda score: sign * score.value)
            found[f"{task}: {metric}"] = tuple(
                name
                for name, score in scores.items()
                if abs(best.value - score.value) <= NORMAL * ((best.stderr or 0) ** 2 + (score.stderr or 0) ** 2) ** 0.5
            )
    return found


# -- sentences -------------------------------------------------------------------------------------------------------


def verdict(models: Sequence[ModelResult], pairs: Sequence[Pair], unit: str) -> tuple[str, ...]:
    """The winners: each MoE is compared with each dense model except the base, or all others with the base."""
    sentences: list[str] = []
    base = models[0]
    matches = _matches(models)
    for one, other in matches:
        sentences.append(_loss_sentence(one, other, base, gap(pairs, one.name, other.name), unit))
        sentences += _domain_sentence(one, other, pairs)
    sentences += _cost_sentences(matches)
    rest = [model for model in models[1:] if (model, base) not in matches]
    if rest:
        changes = ", ".join(_change(model.name, gap(pairs, model.name, base.name)) for model in rest)
        sentences.append(f"Against {base.name}, in nats per {unit}: {changes}.")
    told = [model for model in models if model.agreement is not None]
    if told:
        shares = ", ".join(f"{model.agreement.top1.value:.1%} ({model.name})" for model in told if model.agreement)
        sentences.append(f"Top-1 agreement with {base.name}: {shares}.")
    return tuple(sentences + _task_sentences(models))


def _matches(models: Sequence[ModelResult]) -> list[tuple[ModelResult, ModelResult]]:
    """The pairs that the sentences compare."""
    base, others = models[0], models[1:]
    mixtures = [model for model in others if model.kind == "moe"]
    rivals = [model for model in others if model.kind == "dense"]
    if mixtures and rivals:
        return [(mixture, rival) for mixture in mixtures for rival in rivals]
    return [(model, base) for model in others]


def _loss_sentence(one: ModelResult, other: ModelResult, base: ModelResult, found: Difference, unit: str) -> str:
    size = f"{abs(found.value):.4f} nats per {unit} {'lower' if found.value < 0 else 'higher'}"
    figures = f"{one.loss.value:.4f} against {other.loss.value:.4f}"
    effort = _effort(one, other, base)
    if found.is_decided:
        verb = "beats" if found.value < 0 else "loses to"
        evidence = f"{figures}; {_spans(found, one, other)}"
        return f"{one.name} {verb} {other.name}: its held-out loss is {size} ({evidence}){effort}"
    return (
        f"{one.name} and {other.name}: {NO_DIFFERENCE}. The held-out loss of {one.name} is {size} ({figures}; "
        f"{_spans(found, one, other)}), but {_doubt(found, one, other)}{effort}"
    )


def _spans(found: Difference, one: ModelResult, other: ModelResult) -> str:
    many = "documents" if found.over is None else f"{found.over:,} document{'' if found.over == 1 else 's'}"
    said = f"difference in 95% over {many} {_ends(found.documents)}"
    return said if found.seeds is None else f"{said}, over {_seeds(one, other)} seeds {_ends(found.seeds)}"


def _doubt(found: Difference, one: ModelResult, other: ModelResult) -> str:
    """Why a difference is undecided."""
    doubts = []
    if side(found.gap, found.count) == "few":
        doubts.append(f"{found.count} documents are too few for a finding (at least {FEWEST_DOCUMENTS})")
    elif abs(found.value) < SMALLEST:
        doubts.append("that is rounding")
    elif found.documents.low <= 0 <= found.documents.high:
        doubts.append("the interval over documents includes 0")
    if found.seeds is not None and found.seeds.low <= 0 <= found.seeds.high:
        doubts.append(f"the interval over {_seeds(one, other)} seeds includes 0")
    return " and ".join(doubts) or f"swapping the two in random documents gives as much with p = {found.p:.2g}"


def _ends(span: Span) -> str:
    return f"{span.low:+.4f} to {span.high:+.4f}"


def _seeds(*models: ModelResult) -> int:
    return max(len(model.checkpoints) for model in models)


def _effort(one: ModelResult, other: ModelResult, base: ModelResult) -> str:
    """The recorded training of each; the end of the sentence."""
    a, b = one.checkpoints[0].training, other.checkpoints[0].training
    if other is base:
        return f", after {units.tokens(a.tokens)} tokens of training since." if a is not None and a.since else "."
    if a is None or b is None or a.since is None or b.since is None:
        return ". How long each was trained since the base is not on record for both."
    spent = f"{_times(a.tokens, b.tokens, 'tokens')} and {_times(a.flops, b.flops, 'FLOPs')} of training"
    return f", after {spent} ({units.tokens(a.tokens)} tokens since {a.since})."


def _times(a: float, b: float, what: str) -> str:
    return f"equal {what}" if abs(a - b) <= EQUAL * b else f"{a / b:.2f} times the {what}"


def _domain_sentence(one: ModelResult, other: ModelResult, pairs: Sequence[Pair]) -> list[str]:
    sides: dict[str, list[str]] = {one.name: [], other.name: [], "": []}
    for domain in one.by_domain:
        found = gap(pairs, one.name, other.name, domain)
        sides["" if not found.is_decided else one.name if found.value < 0 else other.name].append(domain)
    parts = [f"{name} is better at {listed(domains)}" for name, domains in sides.items() if name and domains]
    if sides[""] and parts:
        parts.append(f"{NO_DIFFERENCE} at {listed(sides[''])}")
    if not parts and sides[""]:
        parts = [f"{NO_DIFFERENCE} in any"]
    return [f"By domain, {one.name} and {other.name}: {'; '.join(parts)}."] if parts else []


def _cost_sentences(matches: Sequence[tuple[ModelResult, ModelResult]]) -> Iterator[str]:
    """One for each model and all its rivals of the same size."""
    groups: dict[tuple[str, int, int], list[tuple[ModelResult, ModelResult]]] = {}
    for one, other in matches:
        groups.setdefault((one.name, other.parameters, other.active), []).append((one, other))
    for group in groups.values():
        yield _cost_sentence(*group[0], listed([other.name for _, other in group]))


def _cost_sentence(one: ModelResult, other: ModelResult, others: str) -> str:
    costs = [
        _ratio(one.parameters, other.parameters, "parameters"),
        _ratio(one.active, other.active, "active parameters"),
        _ratio(one.flops, other.flops, "FLOPs per token"),
        _ratio(one.disk, other.disk, "disk"),
    ]
    said = f"Compared with {others}, {one.name} has {', '.join(costs)}"
    if one.speed is not None and other.speed is not None:
        said += f"; prefill runs at {one.speed.prefill / other.speed.prefill:.2f} and decode at "
        said += f"{one.speed.decode / other.speed.decode:.2f} times the speed, with "
        said += f"{one.speed.memory / other.speed.memory:.2f} times the peak memory"
    return f"{said}."


def _ratio(a: float, b: float, what: str) -> str:
    return f"as many {what}" if abs(a - b) <= EQUAL * b and what != "disk" else f"{a / b:.2f} times the {what}"


def _change(name: str, found: Difference) -> str:
    return f"{name} {found.value:+.4f}" + ("" if found.is_decided else f" ({NO_DIFFERENCE})")


def _task_sentences(models: Sequence[ModelResult]) -> list[str]:
    said = []
    for measure, best in _best_scores(models).items():
        tied = len(best) == len(models)
        result = "no model is ahead by more than the standard errors" if tied else f"{listed(best)} ahead"
        said.append(f"Task {measure}: {result}.")
    return said


# -- caveats ------------------------------------------------------------------------------------------


def warnings(models: Sequence[ModelResult], text: TextFacts, unit: str) -> tuple[str, ...]:
    """What a reader must know before using the figures."""
    documents, tokens = sum(text.documents.values()), sum(text.tokens.values())
    said = [
        f"{model.name} ({checkpoint.path}) was trained on {checkpoint.leak.documents} of the {documents} documents "
        f"({checkpoint.leak.tokens / tokens:.1%} of the tokens): its loss there is not a held-out loss."
        for model in models
        for checkpoint in model.checkpoints
        if checkpoint.leak.documents
    ]
    unknown = [model.name for model in models if any(one.leak.unchecked is None for one in model.checkpoints)]
    if unknown:
        said.append(f"The training data of {listed(unknown)} is not on record: it may include this text.")
    for name, places in _unread(models).items():
        said.append(f"Part of the training data of {name} could not be searched for this text: {', '.join(places)}.")
    if unit == "byte":
        said.append(
            "The tokenizers differ: losses are per byte of text. Windows have the same number of tokens for each "
            "model, so that a model with longer tokens sees more text; agreement needs the base's tokenizer."
        )
    if _seeds(*models) == 1:
        said.append("Single seed per model: intervals cover document sampling only.")
    few = {domain: count for domain, count in text.documents.items() if count < FEW_DOCUMENTS}
    if few:
        counts = ", ".join(f"{domain} {count}" for domain, count in few.items())
        said.append(f"Few documents ({counts}): intervals over them are rough.")
    return tuple(said)


def _unread(models: Sequence[ModelResult]) -> Mapping[str, tuple[str, ...]]:
    return {
        model.name: tuple(dict.fromkeys(place for one in model.checkpoints for place in one.leak.unchecked or ()))
        for model in models
        if any(one.leak.unchecked for one in model.checkpoints)
    }
