"""A comparison as tables: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from smolmoe.core import units
from smolmoe.core.statistics import NO_DIFFERENCE
from smolmoe.results.comparison import Comparison, Difference, Estimate, ModelResult, Pair, Score, Training

NONE = "-"
BEST = "*"  # after a figure that no other model beats


@dataclass(frozen=True)
class Row:
    """A line of a table; `best` says which cells no other beats."""

    label: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class Table:
    """Lines in groups, each below a heading of its own."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


def tables(found: Comparison) -> tuple[Table, ...]:
    """The models side by side, and what tells every two of them apart."""
    return _models(found), _pairs(found)


def notes(found: Comparison) -> tuple[str, ...]:
    """What the tables' signs mean."""
    said = [
        f"{BEST} no other model beats it. In brackets: 95% by a bootstrap over {sum(found.text.documents.values())} "
        "documents."
    ]
    if found.seeds > 1:
        alone = [model.name for model in found.models if len(model.checkpoints) == 1]
        said.append(f"±, and over seeds: 95% by Student's t over {found.seeds} seeds.")
        said += [f"{' and '.join(alone)}: one seed, compared with all of the others'."] if alone else []
    said.append("p: how often swapping the two models in random documents gives a difference as wide.")
    return tuple(said)


def markdown(found: Comparison) -> str:
    """The verdict, the warnings and the tables."""
    lines = [f"# {' | '.join(_safe(model.name) for model in found.models)}", ""]
    lines += [f"- {_safe(sentence)}" for sentence in found.verdict]
    lines += ["", *(f"> {_safe(warning)}" for warning in found.warnings)] if found.warnings else []
    for table in tables(found):
        columns = ["", *table.columns]
        lines += ["", f"{_safe(table.title)}:", "", _line(columns), _line(["---", *("---:" for _ in table.columns)])]
        for heading, rows in table.groups:
            lines += [_line([f"**{_safe(heading)}**", *("" for _ in table.columns)])] if heading else []
            lines += [_line([row.label, *map(_marked, row.cells, row.best)]) for row in rows]
    return "\n".join([*lines, "", *(f"{note}  " for note in notes(found)), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_safe, cells))} |"


def _marked(cell: str, best: bool) -> str:
    return f"{cell}{BEST}" if best else cell


def _safe(text: str) -> str:
    """Names are the user's: a table's bars and line ends are not theirs to set."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


# -- models ----------------------------------------------------------------------------------------------------------


def _models(found: Comparison) -> Table:
    columns = tuple(model.name for model in found.models)
    unit = found.unit
    groups = [(f"held-out loss, nats a {unit}", _figures(found, "loss", "by_domain", "loss", 4))]
    groups.append((f"perplexity a {unit}", _figures(found, "perplexity", "perplexity_by_domain", None, 2)))
    groups.append(("bits a byte", _figures(found, "bits_per_byte", "bits_per_byte_by_domain", None, 4)[:1]))
    groups.append((f"compared with {found.base.name}", _agreement(found)))
    groups.append(("cost", _costs(found)))
    groups.append(("speed", _speed(found)))
    groups.append(("training", _training(found)))
    groups.append(("tasks", _tasks(found)))
    tokens = sum(found.text.tokens.values())
    title = f"{found.text.source}: {tokens:,} tokens in {sum(found.text.documents.values()):,} documents"
    return Table(title, columns, tuple((heading, rows) for heading, rows in groups if rows))


def _figures(found: Comparison, whole: str, parts: str, measure: str | None, digits: int) -> tuple[Row, ...]:
    """A row of all text, and one of each domain."""
    rows = [_row(found, "all", measure, lambda model: _estimate(getattr(model, whole), digits, digits // 2))]
    for domain in found.base.by_domain:
        cells = [_estimate(getattr(model, parts)[domain], digits, digits // 2) for model in found.models]
        rows.append(_row_of(found, domain, None if measure is None else f"{measure} on {domain}", cells))
    return tuple(rows)


def _agreement(found: Comparison) -> tuple[Row, ...]:
    if all(model.agreement is None for model in found.models):
        return ()

    def same(model: ModelResult) -> str:
        return NONE if model.agreement is None else _estimate(model.agreement.top1, 4, 3)

    def kl(model: ModelResult) -> str:
        return NONE if model.agreement is None else _estimate(model.agreement.kl, 4, 4)

    return (
        _row(found, "same token likeliest", "agreement with the base", same),
        _row(found, "KL, nats a token", "KL to the base", kl),
    )


def _costs(found: Comparison) -> tuple[Row, ...]:
    return (
        _row(found, "parameters", "parameters", lambda model: units.parameters(model.parameters)),
        _row(found, "active", "active parameters", lambda model: units.parameters(model.active)),
        _row(found, "FLOPs a token", "FLOPs", lambda model: units.flops(model.flops)),
        _row(found, "weights on disk", "disk", lambda model: units.size(model.disk)),
    )


def _speed(found: Comparison) -> tuple[Row, ...]:
    if all(model.speed is None for model in found.models):
        return ()
    forms: dict[str, tuple[str, Callable[[ModelResult], str]]] = {
        "first token after": ("latency", lambda model: units.duration(model.speed.latency) if model.speed else NONE),
        "reads, tokens/s": ("prefill", lambda model: f"{model.speed.prefill:,.0f}" if model.speed else NONE),
        "writes, tokens/s": ("decode", lambda model: f"{model.speed.decode:,.0f}" if model.speed else NONE),
        "memory": ("memory", lambda model: units.size(model.speed.memory) if model.speed else NONE),
    }
    return tuple(_row(found, label, measure, form) for label, (measure, form) in forms.items())


def _training(found: Comparison) -> tuple[Row, ...]:
    records = {model.name: model.checkpoints[0].training for model in found.models}
    if not any(records.values()):
        return ()

    def said(model: ModelResult, form: Callable[[Training], str]) -> str:
        record = records[model.name]
        since = f" since {record.since}" if record is not None and record.since else ""
        return NONE if record is None else f"{form(record)}{since}"

    return (
        _row(found, "tokens", None, lambda model: said(model, lambda record: units.tokens(record.tokens))),
        _row(found, "FLOPs", None, lambda model: said(model, lambda record: units.flops(record.flops))),
    )


def _tasks(found: Comparison) -> tuple[Row, ...]:
    return tuple(
        _row_of(found, f"{task}: {metric}", f"{task}: {metric}", [_score(m.tasks[task][metric]) for m in found.models])
        for task, metrics in found.base.tasks.items()
        for metric in metrics
    )


def _score(score: Score) -> str:
    return f"{score.value:.4f}" if score.stderr is None else f"{score.value:.4f} ± {score.stderr:.4f}"


def _row(found: Comparison, label: str, measure: str | None, form: Callable[[ModelResult], str]) -> Row:
    return _row_of(found, label, measure, [form(model) for model in found.models])


def _row_of(found: Comparison, label: str, measure: str | None, cells: Sequence[str]) -> Row:
    """Where all are as good, none is marked."""
    best = found.winners.get(measure or "", ())
    marked = len(best) < len(found.models)
    return Row(label, tuple(cells), tuple(marked and model.name in best for model in found.models))


def _estimate(figure: Estimate, digits: int, of_documents: int) -> str:
    """Value ± over seeds [over documents].

    Args:
        digits: of the value.
        of_documents: of the interval over documents, which is mostly far wider.
    """
    low, high = figure.documents.low, figure.documents.high
    seeds = "" if figure.seeds is None else f" ±{(figure.seeds.high - figure.seeds.low) / 2:.{digits}f}"
    return f"{figure.value:,.{digits}f}{seeds} [{low:,.{of_documents}f}, {high:,.{of_documents}f}]"


# -- pairs -----------------------------------------------------------------------------------------------------------


def _pairs(found: Comparison) -> Table:
    columns = ["difference", "over documents", *(["over seeds"] if found.seeds > 1 else []), "p", "better"]
    groups = tuple(
        (f"{pair.first} less {pair.second}", tuple(_pair_rows(pair, found.seeds > 1))) for pair in found.pairs
    )
    return Table(f"Differences of held-out loss, nats a {found.unit}", tuple(columns), groups)


def _pair_rows(pair: Pair, with_seeds: bool) -> Iterator[Row]:
    for label, found in {"all": pair.loss, **pair.by_domain}.items():
        cells = [f"{found.value:+.4f}", f"[{found.documents.low:+.4f}, {found.documents.high:+.4f}]"]
        if with_seeds:
            cells.append(NONE if found.seeds is None else f"[{found.seeds.low:+.4f}, {found.seeds.high:+.4f}]")
        cells += [f"{found.p:.4f}", _better(pair, found)]
        yield Row(label, tuple(cells), (False,) * len(cells))


def _better(pair: Pair, found: Difference) -> str:
    return NO_DIFFERENCE if not found.is_decided else pair.first if found.value < 0 else pair.second
