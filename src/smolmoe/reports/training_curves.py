"""Figures of training runs from their `metrics.jsonl`: loss, router terms, load balance and active experts over time.

Call them inside `drawing.look()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import read_rows
from smolmoe.errors import DataError
from smolmoe.reports.drawing import INK, Drawing, new_figure
from smolmoe.reports.names import Looks, style

Row = Mapping[str, Any]
Points = list[tuple[int, float]]
_TERMS = {"load_balance": "load balance", "z_loss": "router z", "guidance": "guidance"}


@dataclass(frozen=True)
class History:
    """The rows of one run, by kind."""

    label: str
    rows: Mapping[str, Sequence[Row]]

    @classmethod
    def read(cls, label: str, path: Path) -> History:
        """The `metrics.jsonl` of a run folder, or the file itself; a last line that a kill cut short is left out.

        Raises:
            DataError: there is none, or a line in it is no row of a run.
        """
        file = path / "metrics.jsonl" if path.is_dir() else path
        try:
            found = read_rows(file)
        except OSError as error:
            raise DataError(
                "there are no metrics of a run.", field=label, value=str(path), fix="Name the folder of a run."
            ) from error
        rows: dict[str, list[Row]] = {}
        for row in found:
            rows.setdefault(row["kind"], []).append(row)
        return cls(label, rows)

    def points(self, kind: str, key: str) -> Points:
        """(step, value) of the rows that have this number."""
        found = ((row["step"], row.get(key)) for row in self.rows.get(kind, ()))
        return [(step, float(value)) for step, value in found if value is not None and math.isfinite(value)]

    def routing(self, key: str) -> Points:
        """(step, value) of a routing statistic: of training windows, or held out where there are no windows."""
        return self.points("window", key) or self.points("held_out", key)


def training_figures(histories: Sequence[History]) -> list[Drawing]:
    """What the runs' metrics have the numbers for; a run of a dense model has no part in the balance."""
    looks = Looks(history.label for history in histories)
    figures = (_losses, _domains, _terms, _balance) if histories else ()
    return [drawing for figure in figures if (drawing := figure(histories, looks)) is not None]


def _losses(histories: Sequence[History], looks: Looks) -> Drawing | None:
    panels = [
        ("on training batches, smoothed", "cross-entropy (nats a token)", smoothed_ce),
        ("held out", "loss (nats a token)", lambda history: history.points("held_out", "loss")),
    ]
    caption = "Lower is better; the right panel is on text that the model was not trained on."
    return _curves("training-loss", "Loss over training", caption, panels, histories, looks)


def _domains(histories: Sequence[History], looks: Looks) -> Drawing | None:
    names = sorted(
        {name for history in histories for row in history.rows.get("held_out", ()) for name in row.get("by_domain", {})}
    )
    if len(names) < 2:
        return None
    panels = [(name, "held-out loss (nats a token)", _domain(name)) for name in names]
    caption = "A domain whose line rises while the others fall pays for their gain."
    return _curves("training-domains", "Held-out loss of each domain over training", caption, panels, histories, looks)


def _terms(histories: Sequence[History], looks: Looks) -> Drawing | None:
    panels = [
        (words, f"{words} (weighted)", _value("step", key))
        for key, words in _TERMS.items()
        if any(history.points("step", key) for history in histories)
    ]
    caption = "What each term on the routers adds to the loss, with its weight: beside a cross-entropy of a few nats."
    return (
        _curves("training-terms", "Router terms over training", caption, panels, histories, looks) if panels else None
    )


def _balance(histories: Sequence[History], looks: Looks) -> Drawing | None:
    moes = [history for history in histories if history.routing("balance")]
    if not moes:
        return None
    panels = [
        ("load balance", "entropy of the load (1 is even)", lambda history: history.routing("balance")),
        ("MaxVio", "highest load / mean load − 1", lambda history: history.routing("max_violation")),
        ("active experts", "experts reached, all layers", lambda history: history.routing("active_experts")),
    ]
    drawing = _curves(
        "training-balance",
        "Load balance and active experts over training",
        "Even load is 1 on the left and 0 in the middle; the shade reaches from the least to the most even layer, and "
        "a fall on the right is experts dying.",
        panels,
        moes,
        looks,
    )
    if drawing is not None:
        _spread_and_alarms(drawing, moes, looks)
    return drawing


def _spread_and_alarms(drawing: Drawing, histories: Sequence[History], looks: Looks) -> None:
    balance, _, active = drawing.figure.axes
    for history in histories:
        rows = [row for row in history.rows.get("window", ()) if row.get("balance_by_layer")]
        if rows:
            low, high = zip(
                *((min(row["balance_by_layer"]), max(row["balance_by_layer"])) for row in rows), strict=True
            )
            balance.fill_between(
                [row["step"] for row in rows], low, high, color=style(looks(history.label))["color"], alpha=0.13, lw=0
            )
    alarms = [row["step"] for history in histories for row in history.rows.get("alarm", ())]
    active.set_ylim(0, 1.08 * active.get_ylim()[1])
    if alarms:
        marks = active.plot(alarms, [0] * len(alarms), "^", color=INK, markersize=6, clip_on=False, label="alarm")
        active.legend(handles=marks, loc="lower right")


def _curves(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[tuple[str, str, Callable[[History], Points]]],
    histories: Sequence[History],
    looks: Looks,
) -> Drawing | None:
    """A panel for each quantity, a line for each run; None where no run has any."""
    lines = [[(history, points(history)) for history in histories] for _, _, points in panels]
    if not any(points for panel in lines for _, points in panel):
        return None
    per_row = 2 if len(panels) == 2 else 3
    rows = math.ceil(len(panels) / per_row)
    figure = new_figure(rows * 2.7 + 0.35)
    grid = list(figure.subplots(rows, min(per_row, len(panels)), squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (heading, unit, _), panel in zip(grid, panels, lines, strict=False):
        for history, points in panel:
            if points:
                every = max(1, len(points) // 12)
                axes.plot(
                    *zip(*points, strict=True), label=history.label, markevery=every, **style(looks(history.label))
                )
        axes.set_title(heading)
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(unit)
        axes.grid(True)
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid), key=lambda found: len(found[0]))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return Drawing(name, title, caption, figure)


def _value(kind: str, key: str) -> Callable[[History], Points]:
    return lambda history: history.points(kind, key)


def _domain(name: str) -> Callable[[History], Points]:
    def points(history: History) -> Points:
        rows = history.rows.get("held_out", ())
        return [(row["step"], row["by_domain"][name]) for row in rows if name in row.get("by_domain", {})]

    return points


def smoothed_ce(history: History, keep: float = 0.9) -> Points:
    """An exponential average, without the pull of its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for step, loss in history.points("step", "ce"):
        total, weight = keep * total + loss, keep * weight + 1
        smoothed.append((step, total / weight))
    return smoothed
