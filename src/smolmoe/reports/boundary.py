"""The boundary report: what happened to the held-out loss when the dense model became an MoE, and after."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import replacing
from smolmoe.core.statistics import Interval, evidence, no_finding
from smolmoe.reports.names import Looks, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The checkpoints' folders: each is called so in text, tables, figures and on the report's page.
DENSE, MOE, MOE_TRAINED, DENSE_TRAINED = "dense", "moe", "moe-trained", "dense-trained"
INK = "black"


@dataclass(frozen=True)
class HeldOutLoss:
    """Nats a token on the held-out documents: over all, and in each domain."""

    loss: float
    by_domain: dict[str, float]


@dataclass(frozen=True)
class BoundaryReport:
    """Losses on the same held-out tokens, just before and after the conversion, and after training on.

    Attributes:
        documents, tokens: held out.
        dense, moe: just before and just after the conversion.
        moe_trained: after training on.
        dense_continued: the same dense model after the same further batches; None where that was left out.
        difference: moe_trained - dense_continued, with its interval over documents; below 0 the MoE is better.
    """

    documents: int
    tokens: int
    dense: HeldOutLoss
    moe: HeldOutLoss
    moe_trained: HeldOutLoss
    dense_continued: HeldOutLoss | None
    difference: Interval | None

    @property
    def jump(self) -> float:
        """The loss just after the conversion minus the loss just before it."""
        return self.moe.loss - self.dense.loss

    def rows(self) -> list[tuple[str, HeldOutLoss]]:
        """The models in order of time, with their losses."""
        rows = [(DENSE, self.dense), (MOE, self.moe), (MOE_TRAINED, self.moe_trained)]
        if self.dense_continued is not None:
            rows.append((DENSE_TRAINED, self.dense_continued))
        return rows

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "jump": self.jump}


@dataclass(frozen=True)
class Curve:
    """Losses of one model while it was trained.

    Attributes:
        label: of the model.
        train: (training tokens seen, loss of that step's batch).
        held_out: (training tokens seen, loss on the held-out documents).
    """

    label: str
    train: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float]]


def boundary_text(report: BoundaryReport) -> str:
    """The report as an aligned table and the two sentences that matter."""
    domains = sorted(report.dense.by_domain)
    header = ["held-out loss, nats a token", "all", *domains]
    lines = [header] + [
        [name, f"{held.loss:.4f}", *(f"{held.by_domain[domain]:.4f}" for domain in domains)]
        for name, held in report.rows()
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    table = [
        "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line))
        for line in lines
    ]
    text = "\n".join((table[0], "-" * len(table[0]), *table[1:]))
    text += f"\n\nThe conversion changed the loss by {report.jump:+.6f} on {report.tokens:,} held-out tokens."
    if report.difference is not None:
        text += (
            f"\nAfter the same further batches, {MOE_TRAINED} and {DENSE_TRAINED}: "
            f"{_side(report.difference, report.documents)}, one seed."
        )
    return text


def _side(gap: Interval, documents: int) -> str:
    words = no_finding(gap, documents)
    if words is not None:
        return words
    better = MOE_TRAINED if gap.value < 0 else DENSE_TRAINED
    return f"{better} is better, {evidence(gap, documents)}"


def plot_boundary(path: str | Path, report: BoundaryReport, dense: Curve, moe: Curve, continued: Curve | None) -> None:
    """Draw the loss across the boundary as a PNG: the whole run on the left, held-out losses near the end on the right.

    Everything differs by marker, line style and label as well as by shade, for print in black and white.

    Args:
        dense: until the conversion.
        moe, continued: after it; their tokens count on from the dense model's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    whole, near = figure.subplots(1, 2, width_ratios=(1, 1))
    _draw_whole(whole, dense, moe)
    _draw_near(near, report, dense, moe, continued)
    for axes in (whole, near):
        axes.axvline(dense.held_out[-1][0] / 1000, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel("training tokens (thousands)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=8, loc="upper right")
    drawn = io.BytesIO()
    figure.savefig(drawn)
    with replacing(Path(path)) as partial:
        partial.write_bytes(drawn.getvalue())


def _draw_whole(axes: Axes, dense: Curve, moe: Curve) -> None:
    for curve in (dense, moe):
        colour = _style(curve.label)["color"]
        batches = {"color": colour, "linewidth": 1, "alpha": 0.35, "label": f"{curve.label}, training batches"}
        axes.plot(*_columns(_smooth(curve.train)), **batches)
    for curve in (dense, moe):
        axes.plot(*_columns(curve.held_out), label=f"{curve.label}, held out", **_style(curve.label))
    middle = sum(axes.get_ylim()) / 2
    axes.annotate("conversion", (moe.held_out[0][0] / 1000, middle), rotation=90, ha="right", va="center", fontsize=9)
    axes.set_title("The whole run", loc="left", fontsize=10)
    axes.set_ylabel("loss (nats per token)")


def _draw_near(axes: Axes, report: BoundaryReport, dense: Curve, moe: Curve, continued: Curve | None) -> None:
    boundary = dense.held_out[-1]
    after = moe.held_out[-1][0] - boundary[0]
    before = [point for point in dense.held_out if point[0] >= boundary[0] - 2 * after] or [boundary]
    axes.plot(*_columns(before), label=dense.label, **_style(dense.label))
    if continued is not None:
        axes.plot(*_columns([boundary, *continued.held_out]), label=continued.label, **_style(continued.label))
    axes.plot(*_columns(moe.held_out), label=moe.label, **_style(moe.label))
    axes.annotate(
        f"conversion: {report.dense.loss:.4f} → {report.moe.loss:.4f}\njump {report.jump:+.1e}",
        (boundary[0] / 1000, boundary[1]),
        xytext=(0.42, 0.62),
        textcoords="axes fraction",
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none"},
        arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.8, "shrinkB": 7},
    )
    axes.margins(y=0.15)
    axes.set_title(f"Near the conversion, {report.tokens:,} held-out tokens", loc="left", fontsize=10)
    axes.set_ylabel("held-out loss (nats per token)")


def _style(label: str) -> dict[str, Any]:
    return style(Looks((DENSE, DENSE_TRAINED, MOE, MOE_TRAINED))(label))


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """Thousands of tokens, and losses."""
    return [tokens / 1000 for tokens, _ in points], [loss for _, loss in points]


def _smooth(points: Sequence[tuple[int, float]], keep: float = 0.9) -> list[tuple[int, float]]:
    """An exponential average of the losses, without the pull of its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for tokens, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        smoothed.append((tokens, total / weight))
    return smoothed
