"""Across a conversion: what the held-out loss did before, at the boundary, and after, run beside run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.errors import RequestError
from smolmoe.files import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Compare = Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[float, float, float]]
# Told apart without colour.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-", "marker": "o", "markersize": 5},
    {"color": "black", "linestyle": "--", "marker": "s", "markersize": 7, "markerfacecolor": "none"},
    {"color": "0.45", "linestyle": "-.", "marker": "^", "markersize": 6},
    {"color": "0.45", "linestyle": ":", "marker": "D", "markersize": 5, "markerfacecolor": "none"},
    {"color": "0.65", "linestyle": "-", "marker": "v", "markersize": 5},
    {"color": "0.65", "linestyle": "--", "marker": "x", "markersize": 6},
)


@dataclass(frozen=True)
class Run:
    """What one training measured on the held-out text.

    Attributes:
        label: what it is called in tables and pictures.
        losses: step -> nats a token; step 0 is before the first.
        tokens: that the run trained on.
        steps: of the run.
        flops: of the run.
        documents: final losses document by document, as `held_out.json` has them.
    """

    label: str
    losses: dict[int, float]
    tokens: int
    steps: int
    flops: float
    documents: dict[str, Any]

    @property
    def final(self) -> float:
        return self.losses[max(self.losses)]

    @property
    def drop(self) -> float:
        """How far the loss fell from before the first step to after the last."""
        return self.losses[min(self.losses)] - self.final


def read_run(label: str, folder: Path) -> Run:
    """A run from its folder.

    Raises:
        RequestError: the run is not finished.
    """
    if not (folder / "summary.json").is_file():
        raise RequestError("the run is not finished.", field=label, value=str(folder))
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "held_out"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    documents = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    losses = {row["step"]: row["loss"] for row in rows}
    return Run(label, losses, summary["tokens"], summary["steps"], summary["flops"], documents)


def growth(before: Run | None, after: Sequence[Run], reference: str | None, compare: Compare) -> dict[str, Any]:
    """The report as plain data.

    Args:
        before: the run that ended at the conversion.
        after: the runs that went on from there.
        reference: label of the run that the others are compared with.
        compare: final loss of one run minus another's, with the low and high end of its interval.

    Raises:
        RequestError: the runs were not measured on the same held-out tokens.
    """
    runs = [*([before] if before else []), *after]
    for run in runs[1:]:
        if run.documents["tokens"] != runs[0].documents["tokens"]:
            raise RequestError(
                "was measured on other held-out tokens than " + runs[0].label + ".",
                field="after",
                value=run.label,
                fix="Give the runs the same data.validation, data.length and evaluation.",
            )
    rows = {}
    for run in after:
        rows[run.label] = {
            "losses": run.losses,
            "final": run.final,
            "drop": run.drop,
            "tokens": run.tokens,
            "flops": run.flops,
            "jump": None if before is None else run.losses[0] - before.final,
            "spike": max(run.losses.values()) - run.losses[0],
        }
    base = next((run for run in after if run.label == reference), None)
    if base is not None:
        for run in after:
            if run is not base:
                difference = compare(run.documents, base.documents)
                rows[run.label]["difference"] = dict(zip(("value", "low", "high"), difference, strict=True))
    return {
        "documents": len(runs[0].documents["tokens"]),
        "held_out_tokens": sum(runs[0].documents["tokens"]),
        "before": None if before is None else {"label": before.label, "loss": before.final, "tokens": before.tokens},
        "after": rows,
        "reference": reference,
    }


def growth_text(report: Mapping[str, Any], steps: Sequence[int] = (0, 1, 10, 30, 100)) -> str:
    """The report as an aligned table, and the sentences that matter."""
    shown = [step for step in steps if any(step in row["losses"] for row in report["after"].values())]
    before = report["before"]
    header = ["held-out loss, nats a token", *(["before"] if before else []), *map(str, shown), "final", "FLOPs"]
    table = [header]
    for label, row in report["after"].items():
        cells = [f"{row['losses'][step]:.4f}" if step in row["losses"] else "" for step in shown]
        first = [f"{before['loss']:.4f}"] if before else []
        table.append([label, *first, *cells, f"{row['final']:.4f}", f"{row['flops']:.2e}"])
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(widths[0]) if not i else cell.rjust(widths[i]) for i, cell in enumerate(line))
        for line in table
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append("")
    for label, row in report["after"].items():
        lines.append(f"{label}: {_sentence(row, report)}")
    return "\n".join(lines)


def _sentence(row: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    said = [f"highest {row['spike']:+.4f} over its start, in the end {-row['drop']:+.4f}"]
    if row["jump"] is not None:
        said.insert(0, f"jump at the conversion {row['jump']:+.1e}")
    difference = row.get("difference")
    if difference is not None:
        if difference["low"] <= 0 <= difference["high"]:
            verdict = "no different from"
        else:
            verdict = "better than" if difference["high"] < 0 else "worse than"
        said.append(
            f"{verdict} {report['reference']} by {difference['value']:+.4f} "
            f"[{difference['low']:+.4f}, {difference['high']:+.4f}] (95% over {report['documents']} documents)"
        )
    return "; ".join(said) + "."


def plot_growth(path: Path, before: Run | None, after: Sequence[Run], held_out_tokens: int) -> None:
    """The held-out losses around the conversion: the whole way by tokens, and the first steps by the logarithm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    whole, first = figure.subplots(1, 2)
    start = before.tokens if before is not None else 0
    if before is not None:
        tokens, losses = _by_tokens(before, 0)
        whole.plot(tokens, losses, label=f"{before.label}, before", color="0.3", linewidth=1.5)
    for run, style in zip(after, _cycled(len(after)), strict=True):
        tokens, losses = _by_tokens(run, start)
        whole.plot(tokens, losses, label=run.label, **style)
        first.plot([step + 1 for step in sorted(run.losses)], [run.losses[s] for s in sorted(run.losses)], **style)
    _label(whole, "The whole way", "training tokens (thousands)")
    _label(first, "From the conversion on", "optimiser step (1 = before the first, logarithmic)")
    first.set_xscale("log")
    whole.legend(fontsize=8, frameon=False)
    figure.suptitle(f"Held-out loss across the conversion, {held_out_tokens:,} tokens", fontsize=11)
    figure.savefig(path, dpi=150)


def _by_tokens(run: Run, start: int) -> tuple[list[float], list[float]]:
    steps = sorted(run.losses)
    return [(start + step * run.tokens / run.steps) / 1000 for step in steps], [run.losses[step] for step in steps]


def _cycled(count: int) -> list[dict[str, Any]]:
    return [_STYLES[index % len(_STYLES)] for index in range(count)]


def _label(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel("held-out loss (nats a token)")
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def write_report(
    out: Path, before: Path | None, after: Mapping[str, Path], reference: str | None, compare: Compare
) -> dict[str, Any]:
    """Write `report.json` and `growth.png` of these run folders into `out`; returns the report and its text."""
    runs = [read_run(label, folder) for label, folder in after.items()]
    first = None if before is None else read_run(before.name, before)
    found = growth(first, runs, reference, compare)
    out.mkdir(parents=True, exist_ok=True)
    plot_growth(out / "growth.png", first, runs, found["held_out_tokens"])
    found["text"] = growth_text(found)
    write_json(out / "report.json", found)
    return found
