"""The held-out loss across a conversion: what a pipeline's `report` stage recorded, with the names of a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import NO_DIFFERENCE, SMALLEST, Interval, side
from smolmoe.reports.blocks import Block, Table
from smolmoe.reports.figures import Figure, Level, Lines, Points, Series
from smolmoe.reports.names import Looks
from smolmoe.reports.plot import plot
from smolmoe.reports.scales import room_around
from smolmoe.reports.training_curves import History
from smolmoe.results.base import read_plain

_LOSS = "held-out loss (nats per token)"
VERDICTS = {"few": "too few documents", "none": NO_DIFFERENCE, "lower": "better", "higher": "worse"}


@dataclass(frozen=True)
class Boundary:
    """The held-out loss across a conversion.

    Attributes:
        label: of the pipeline.
        folder: of the pipeline.
        runs: folders of the compared runs, if on record.
        curves: name -> (training tokens, held-out loss); runs after the conversion include the tokens before it.
        at: tokens at the conversion.
        rows: name -> known numbers: `final`, `jump`, `tokens`, `flops`, `difference`, `parameters`; the run before the
            conversion first.
        before: name of that run.
        reference: name of the baseline run.
        documents, tokens: held out.
        by_flops: name -> (training FLOPs since the conversion, held-out loss), if known.
        by_domain: name -> domain (`all` first) -> loss, if known.
    """

    label: str
    folder: Path
    runs: Sequence[Path]
    curves: Mapping[str, Points]
    at: float
    rows: Mapping[str, Mapping[str, Any]]
    before: str | None
    reference: str | None
    documents: int
    tokens: int
    by_flops: Mapping[str, Points] = field(default_factory=dict)
    by_domain: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def differences(self) -> list[tuple[str, Interval]]:
        """Each run's final loss minus the reference's."""
        known = ((name, row.get("difference")) for name, row in self.rows.items())
        return [(name, Interval(*(gap[end] for end in ("value", "low", "high")))) for name, gap in known if gap]


def is_training(folder: Path) -> bool:
    """Whether it is the folder of a training run."""
    return (folder / "run.json").is_file() and (folder / "metrics.jsonl").is_file()


def read_boundary(folder: Path, label: Callable[[Path], str], values: Mapping[str, Any]) -> Boundary:
    """The boundary in a `report.json`.

    Args:
        folder: of the file.
        label: folder -> name in the page.
        values: of the file.
    """
    before, folders = values.get("before"), values.get("runs") or {}
    at = float(before["tokens"]) if before else 0.0

    def run(words: str) -> Path:
        return folder.parent / str(folders.get(words, words))

    def name(words: str) -> str:
        """The name of a run in the page, if its folder is on record."""
        return label(run(words)) if is_training(run(words)) else words

    curves: dict[str, Points] = {}
    rows: dict[str, dict[str, Any]] = {}
    if before:
        points = _held_out(run(before["label"])) or [(0, before["first"]), (1, before["loss"])]
        last = points[-1][0] or 1
        curves[name(before["label"])] = [(at * step / last, loss) for step, loss in points]
        rows[name(before["label"])] = {"final": before["loss"], "tokens": before["tokens"]}
    by_flops: dict[str, Points] = {}
    for words, row in values["after"].items():
        steps = sorted((int(step), loss) for step, loss in row["losses"].items())
        last = steps[-1][0] or 1
        curves[name(words)] = [(at + row["tokens"] * step / last, loss) for step, loss in steps]
        if row.get("flops"):
            by_flops[name(words)] = [(row["flops"] * step / last, loss) for step, loss in steps]
        rows[name(words)] = {key: row[key] for key in row if key != "losses"}
    words = [*([before["label"]] if before else []), *values["after"]]
    summaries = {each: _summary(run(each)) for each in words}
    for each, summary in summaries.items():
        known = {key: summary[key] for key in ("flops", "parameters") if key in summary}
        rows[name(each)] = known | rows[name(each)]
    reference = values.get("reference")
    domains = {name(each): _by_domain(summary) for each, summary in summaries.items()}
    return Boundary(
        label(folder),
        folder.parent,
        [run(each) for each in words if is_training(run(each))],
        curves,
        at,
        rows,
        name(before["label"]) if before else None,
        None if reference is None else name(reference),
        values["documents"],
        values["held_out_tokens"],
        by_flops,
        {each: found for each, found in domains.items() if len(found) > 2},  # `all`, and more than one domain
    )


def _summary(run: Path) -> Mapping[str, Any]:
    return dict(read_plain(run / "summary.json")) if (run / "summary.json").is_file() else {}


def _by_domain(summary: Mapping[str, Any]) -> dict[str, float]:
    """The final held-out losses of a run: `all` first, then each domain."""
    held_out = summary.get("held_out") or {}
    return {"all": held_out["loss"], **held_out["by_domain"]} if "by_domain" in held_out else {}


def _held_out(folder: Path) -> Points:
    return History.read("run", folder).points("held_out", "loss") if (folder / "metrics.jsonl").is_file() else []


# -- shown -----------------------------------------------------------------------------------------------------------


def boundary_blocks(boundary: Boundary, name: str, looks: Looks) -> list[Block]:
    """The figure and the table of the same."""
    return [plot(boundary_figure(boundary, name, looks)), boundary_table(boundary)]


def boundary_figure(boundary: Boundary, name: str, looks: Looks) -> Figure:
    """Held-out loss over training tokens, with the conversion marked; then over the FLOPs since the conversion."""
    panels = [
        _panel("by training tokens", "training tokens", boundary.curves, boundary.at, looks),
        _panel("by training FLOPs since the conversion", "training FLOPs", boundary.by_flops, 0.0, looks),
    ]
    panels = panels if len(boundary.by_flops) > 1 else panels[:1]
    return Figure(
        name,
        "Held-out loss across the conversion",
        f"{boundary.tokens:,} held-out tokens of {boundary.documents:,} documents; lower is better. An exact "
        "conversion leaves no step at its line.",
        panels,
        per_row=len(panels),
        inches=3.3,
    )


def _panel(title: str, x: str, curves: Mapping[str, Points], at: float, looks: Looks) -> Lines:
    seen = [loss for points in curves.values() for where, loss in points if where >= at / 2]
    room = room_around(min(seen, default=0.0), max(seen, default=0.0), 0.08)
    return Lines(
        title,
        x,
        _LOSS,
        [Series(label, points, looks(label)) for label, points in curves.items()],
        marks=[Level("conversion", at, upright=True)] if at else [],
        bottom=min(seen) - room if seen else None,  # without the steep first steps of training from scratch
        top=max(seen) + room if seen else None,
        direct=True,
    )


def boundary_table(boundary: Boundary) -> Table:
    """Losses, differences and cost of the runs."""
    reference = boundary.reference or "the reference"
    columns: list[tuple[str, Callable[[str, Mapping[str, Any]], Any]]] = [
        ("final loss", lambda _, row: row.get("final")),
        ("verdict", lambda name, _: _verdict(boundary, name)),
        ("step at the conversion", lambda _, row: _step(row.get("jump"))),
        (f"minus {reference} [95% interval]", lambda _, row: _interval(row.get("difference"))),
        ("active parameters", lambda _, row: _count((row.get("parameters") or {}).get("active"))),
        ("parameters", lambda _, row: _count((row.get("parameters") or {}).get("total"))),
        ("training tokens", lambda _, row: _count(row.get("tokens"))),
        ("FLOPs", lambda _, row: None if row.get("flops") is None else units.flops(row["flops"])),
    ]
    rows = boundary.rows
    kept = [(head, of) for head, of in columns if any(of(name, row) is not None for name, row in rows.items())]
    shown = [[name, *(of(name, row) for _, of in kept)] for name, row in rows.items()]
    return Table(["model", *(head for head, _ in kept)], shown, "Held-out loss (nats per token)", "models")


def _verdict(boundary: Boundary, name: str) -> str | None:
    if name == boundary.reference:
        return "baseline"
    if name == boundary.before:
        return "before"
    found = dict(boundary.differences).get(name)
    return None if found is None else VERDICTS[side(found, boundary.documents)]


def _step(value: float | None) -> str | None:
    return None if value is None else "none" if abs(value) < SMALLEST else f"{value:+.4f}".replace("-", "−")


def _count(value: float | None) -> str | None:
    return None if value is None else units.count(value)


def _interval(found: Mapping[str, float] | None) -> str | None:
    if not found:
        return None
    return f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]".replace("-", "−")


def by_domain_table(boundary: Boundary) -> Table:
    """Final held-out losses of the runs in each domain."""
    domains = list(next(iter(boundary.by_domain.values())))
    rows = [[label, *map(found.get, domains)] for label, found in boundary.by_domain.items()]
    return Table(["model", *domains], rows, f"{boundary.label}: held-out loss (nats per token)")
