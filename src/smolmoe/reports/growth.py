"""The held-out loss across a conversion: before, at the boundary and after, for each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core import units
from smolmoe.core.files import growing, write_json
from smolmoe.core.json_text import read_object, read_rows
from smolmoe.core.statistics import Interval, evidence, no_finding
from smolmoe.errors import RequestError
from smolmoe.evaluation.held_out import same_text
from smolmoe.reports.drawing import save_figure
from smolmoe.reports.figures import Figure, Level, Lines, Points, Series
from smolmoe.reports.names import Looks

Compare = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[float, float, float]]
STEPS = (0, 1, 10, 30, 100)  # after the boundary, shown in the table if measured


@dataclass(frozen=True)
class Run:
    """The held-out measurements of one training.

    Attributes:
        label: name in tables and figures.
        losses: step -> nats per token; step 0 is before the first.
        tokens: of the training.
        steps: of the run.
        flops: of the run.
        documents: final losses per document, as in `held_out.json`.
    """

    label: str
    losses: dict[int, float]
    tokens: int
    steps: int
    flops: float
    documents: dict[str, Any]

    @property
    def first(self) -> float:
        return self.losses[min(self.losses)]

    @property
    def final(self) -> float:
        return self.losses[max(self.losses)]


def read_run(label: str, folder: Path) -> Run:
    """A run from its folder.

    Raises:
        RequestError: the run is not finished.
    """
    if not (folder / "summary.json").is_file():
        raise RequestError("the run is not finished.", field=label, value=str(folder))
    losses = {row["step"]: row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "held_out"}
    summary, documents = (read_object(folder / name) for name in ("summary.json", "held_out.json"))
    return Run(label, losses, summary["tokens"], summary["steps"], summary["flops"], documents)


def growth(
    before: Run | None, after: Sequence[Run], reference: str | None, compare: Compare, boundary: int = 0
) -> dict[str, Any]:
    """The report as plain data, losses in nats per token. For each run after the boundary:

    `jump`: its loss before its first step minus the final one of `before`; `spike`: the highest loss from the boundary
    on minus the one at the boundary; `drop`: from the boundary to its end; `total_drop`: from before the first step of
    `before` to its end; `difference`: its final loss minus the reference's.

    Args:
        before: the run that ended at the conversion.
        after: the runs that continued from there.
        reference: label of the baseline run.
        compare: final loss of one run minus another's, with the low and high end of its interval.
        boundary: step of the runs after, 0 for the conversion.

    Raises:
        RequestError: the runs were not measured on the same held-out tokens, or not at the boundary.
    """
    runs = [*([before] if before else []), *after]
    for run in runs[1:]:
        if not same_text(run.documents, runs[0].documents):
            raise RequestError(
                f"was measured on other held-out text than {runs[0].label}.",
                field="after",
                value=run.label,
                fix="Give the runs the same data.validation, data.length and evaluation.",
            )
    rows = {run.label: _row(run, before, boundary) for run in after}
    base = next((run for run in after if run.label == reference), None)
    for run in after:
        if base is not None and run is not base:
            difference = compare(run.documents, base.documents)
            rows[run.label]["difference"] = dict(zip(("value", "low", "high"), difference, strict=True))
    return {
        "documents": len(runs[0].documents["tokens"]),
        "held_out_tokens": sum(runs[0].documents["tokens"]),
        "boundary": boundary,
        "before": None
        if before is None
        else {"label": before.label, "first": before.first, "loss": before.final, "tokens": before.tokens},
        "after": rows,
        "reference": reference,
    }


def _row(run: Run, before: Run | None, boundary: int) -> dict[str, Any]:
    if boundary not in run.losses:
        raise RequestError(
            f"was not measured at step {boundary}.",
            field="after",
            value=run.label,
            fix=f"Add {boundary} to its evaluation.at.",
        )
    start = run.losses[boundary]
    return {
        "losses": run.losses,
        "final": run.final,
        "tokens": run.tokens,
        "flops": run.flops,
        "jump": None if before is None else run.losses[0] - before.final,
        "spike": max(loss for step, loss in run.losses.items() if step >= boundary) - start,
        "drop": start - run.final,
        "total_drop": None if before is None else before.first - run.final,
    }


def growth_text(report: Mapping[str, Any]) -> str:
    """The report as aligned tables, and a sentence for each comparison."""
    rows, boundary = report["after"], report["boundary"]
    before = report["before"] if boundary == 0 else None
    shown = [
        step for step in (boundary + more for more in STEPS) if any(step in row["losses"] for row in rows.values())
    ]
    losses = [["held-out loss (nats per token)", "before", *(f"step {step}" for step in shown), "final"]]
    changes = [["changes", "jump", "spike", "drop", "total drop", "tokens", "FLOPs"]]
    for label, row in rows.items():
        cells = [f"{row['losses'][step]:.4f}" if step in row["losses"] else "" for step in shown]
        losses.append([label, f"{before['loss']:.4f}" if before else "", *cells, f"{row['final']:.4f}"])
        jump = f"{row['jump']:+.1e}" if before else ""
        total = "" if row["total_drop"] is None else f"{row['total_drop']:+.4f}"
        found = (jump, f"{row['spike']:+.4f}", f"{row['drop']:+.4f}", total)
        changes.append([label, *found, f"{row['tokens']:,}", units.flops(row["flops"])])
    named = [f"{label}: {_verdict(row['difference'], report)}" for label, row in rows.items() if "difference" in row]
    return "\n".join([*_aligned(losses), "", *_aligned(changes), *(["", *named] if named else [])])


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column left-aligned, the others right-aligned, without empty columns."""
    kept = [column for column in zip(*table, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    lines = []
    for row in zip(*kept, strict=True):
        cells = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _verdict(difference: Mapping[str, float], report: Mapping[str, Any]) -> str:
    gap = Interval(difference["value"], difference["low"], difference["high"])
    words = no_finding(gap, report["documents"])
    if words is not None:
        return f"compared with {report['reference']}, {words} (one seed)."
    verdict = "better than" if gap.high < 0 else "worse than"
    return f"{verdict} {report['reference']}, {evidence(gap, report['documents'])} (one seed)."


def plot_growth(path: Path, before: Run | None, after: Sequence[Run], held_out_tokens: int, boundary: int = 0) -> None:
    """The held-out losses around the boundary: all of them by tokens, and the first steps on a logarithmic axis."""
    start = before.tokens if before is not None else 0
    runs = [*([(before, 0)] if before is not None else []), *((run, start) for run in after)]
    looks = Looks(run.label for run, _ in runs)
    place = (start + boundary * after[0].tokens / after[0].steps) / 1e6
    mark = Level(f"step {boundary}" if boundary else "conversion", place, upright=True)
    since = f"From step {boundary} on" if boundary else "From the conversion on"
    loss = "held-out loss (nats per token)"
    whole = Lines(
        "All training",
        "training tokens (millions)",
        loss,
        [Series(run.label, _by_tokens(run, begin), looks(run.label)) for run, begin in runs],
        marks=[mark] if before is not None or boundary else [],
    )
    near = Lines(
        since,
        "optimiser steps since then",
        loss,
        [Series(run.label, _by_step(run, boundary), looks(run.label)) for run in after],
        scale="steps",
    )
    title = f"Held-out loss, {held_out_tokens:,} tokens"
    save_figure(Figure("growth", title, "Lower is better.", [whole, near], per_row=2, inches=4.4), path)


def _by_tokens(run: Run, start: int) -> Points:
    return [((start + step * run.tokens / run.steps) / 1e6, loss) for step, loss in sorted(run.losses.items())]


def _by_step(run: Run, boundary: int) -> Points:
    return [(step - boundary, loss) for step, loss in sorted(run.losses.items()) if step >= boundary]


def write_report(
    out: Path, before: Path | None, after: Mapping[str, Path], *, reference: str | None, boundary: int, compare: Compare
) -> dict[str, Any]:
    """Write `report.json` and `growth.png` of these run folders into `out`; returns the report and its text.

    `runs` in it maps each label to the name of its folder.
    """
    runs = [read_run(label, folder) for label, folder in after.items()]
    first = None if before is None else read_run(before.name, before)
    found = growth(first, runs, reference, compare, boundary)
    with growing(out):
        plot_growth(out / "growth.png", first, runs, found["held_out_tokens"], boundary)
        found["runs"] = {label: folder.name for label, folder in after.items()}
        found["text"] = growth_text(found)
        write_json(out / "report.json", found)
    return found
