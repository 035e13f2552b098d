"""A comparison as tables: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import NO_DIFFERENCE
from smolmoe.results.comparison import Comparison, Difference, Estimate, ModelResult, Pair, Score, Training

NONE = "-"
BEST = "*"  # marks a figure that no other model beats


@dataclass(frozen=True)
class Row:
    """A row of a table; `best` marks the cells that no other beats."""

    label: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


@dataclass(frozen=True)
class Table:
    """Lines in groups, each below its heading."""

    title: str
    columns: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


def tables(found: Comparison) -> tuple[Table, ...]:
    """The models side by side, and the difference of every two of them."""
    return _models(found), _pairs(found)


def notes(found: Comparison) -> tuple[str, ...]:
    """The legend of the tables."""
    said = [
        f"{BEST} no other model is better. In brackets: 95% interval by a bootstrap over "
        f"{sum(found.text.documents.values())} documents."
    ]
    if found.seeds > 1:
        alone = [model.name for model in found.models if len(model.checkpoints) == 1]
        said.append(f"±, and over seeds: 95% interval by Student's t over {found.seeds} seeds.")
        said += [f"{' and '.join(alone)}: one seed, compared with all of the others'."] if alone else []
    said.append("p: how often swapping the two models in random documents gives at least the same difference.")
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
    """A user's name must not break the table with a bar or a line end."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


# -- models ----------------------------------------------------------------------------------------------------------


def _models(found: Comparison) -> Table:
    records = {model.name: model.checkpoints[0].training for model in found.models}
    groups = {
        "model": _rows(
            found,
            ("class", None, lambda model: model.class_name),
            ("experts, top-k", None, lambda model: f"{model.experts}, top-{model.top_k}" if model.experts else "dense"),
            ("seeds", None, lambda model: str(len(model.checkpoints))),
        ),
        f"held-out loss (nats per {found.unit})": _figures(found, "loss", "by_domain", "loss", 4),
        f"perplexity per {found.unit}": _figures(found, "perplexity", "perplexity_by_domain", None, 2),
        "bits per byte": _figures(found, "bits_per_byte", "bits_per_byte_by_domain", None, 4)[:1],
        f"compared with {found.base.name}": _rows(
            found,
            ("top-1 agreement", "agreement with the base", lambda m: m.agreement and _estimate(m.agreement.top1, 4, 3)),
            ("KL (nats per token)", "KL to the base", lambda m: m.agreement and _estimate(m.agreement.kl, 4, 4)),
        ),
        "cost": _rows(
            found,
            ("parameters", "parameters", lambda model: units.parameters(model.parameters)),
            ("active parameters per token", "active parameters", lambda model: units.parameters(model.active)),
            ("forward FLOPs per token", "FLOPs", lambda model: units.flops(model.flops)),
            ("size on disk", "disk", lambda model: units.size(model.disk)),
        ),
        "speed": _rows(
            found,
            ("time to first token", "latency", lambda model: model.speed and units.duration(model.speed.latency)),
            ("prefill (tokens/s)", "prefill", lambda model: model.speed and f"{model.speed.prefill:,.0f}"),
            ("decode (tokens/s)", "decode", lambda model: model.speed and f"{model.speed.decode:,.0f}"),
            ("peak memory", "memory", lambda model: model.speed and units.size(model.speed.memory)),
        ),
        "training": _rows(
            found,
            ("tokens", None, lambda model: _spent(records[model.name], "tokens", units.tokens)),
            ("FLOPs", None, lambda model: _spent(records[model.name], "flops", units.flops)),
        ),
        "tasks": tuple(
            _row(found, name, name, [_score(model.tasks[task][metric]) for model in found.models])
            for task, metrics in found.base.tasks.items()
            for metric in metrics
            for name in (f"{task}: {metric}",)
        ),
    }
    tokens = sum(found.text.tokens.values())
    title = f"{found.text.source}: {tokens:,} tokens in {sum(found.text.documents.values()):,} documents"
    columns = tuple(model.name for model in found.models)
    return Table(title, columns, tuple((heading, rows) for heading, rows in groups.items() if rows))


def _rows(found: Comparison, *rows: tuple[str, str | None, Callable[[ModelResult], Any]]) -> tuple[Row, ...]:
    """Rows of (label, measure, function that makes a cell), without rows that are empty for all models."""
    cells = [(label, measure, [form(model) for model in found.models]) for label, measure, form in rows]
    return tuple(
        _row(found, label, measure, [cell or NONE for cell in row]) for label, measure, row in cells if any(row)
    )


def _figures(found: Comparison, whole: str, parts: str, measure: str | None, digits: int) -> tuple[Row, ...]:
    """A row of all text, and one of each domain."""
    cells = [_estimate(getattr(model, whole), digits, digits // 2) for model in found.models]
    rows = [_row(found, "all", measure, cells)]
    for domain in found.base.by_domain:
        cells = [_estimate(getattr(model, parts)[domain], digits, digits // 2) for model in found.models]
        rows.append(_row(found, domain, None if measure is None else f"{measure} on {domain}", cells))
    return tuple(rows)


def _spent(record: Training | None, key: str, form: Callable[[float], str]) -> str | None:
    if record is None:
        return None
    return form(getattr(record, key)) + (f" since {record.since}" if record.since else "")


def _score(score: Score) -> str:
    return f"{score.value:.4f}" if score.stderr is None else f"{score.value:.4f} ± {score.stderr:.4f}"


def _row(found: Comparison, label: str, measure: str | None, cells: Sequence[str]) -> Row:
    """A row; no cell is marked if all are equally good."""
    best = found.winners.get(measure or "", ())
    marked = len(best) < len(found.models)
    return Row(label, tuple(cells), tuple(marked and model.name in best for model in found.models))


def _estimate(figure: Estimate, digits: int, of_documents: int) -> str:
    """Value ± over seeds [over documents].

    Args:
        digits: of the value.
        of_documents: of the interval over documents, which is usually much wider.
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
    return Table(f"Difference in held-out loss (nats per {found.unit})", tuple(columns), groups)


def _pair_rows(pair: Pair, with_seeds: bool) -> Iterator[Row]:
    for label, found in {"all": pair.loss, **pair.by_domain}.items():
        cells = [f"{found.value:+.4f}", f"[{found.documents.low:+.4f}, {found.documents.high:+.4f}]"]
        if with_seeds:
            cells.append(NONE if found.seeds is None else f"[{found.seeds.low:+.4f}, {found.seeds.high:+.4f}]")
        cells += [f"{found.p:.4f}", _better(pair, found)]
        yield Row(label, tuple(cells), (False,) * len(cells))


def _better(pair: Pair, found: Difference) -> str:
    return NO_DIFFERENCE if not found.is_decided else pair.first if found.value < 0 else pair.second
