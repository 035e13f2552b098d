"""Figures of training runs from their `metrics.jsonl`: loss, router terms, load balance and active experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import read_rows
from smolmoe.errors import DataError
from smolmoe.moe.losses import ROUTER_LOSSES
from smolmoe.reports.figures import Band, Figure, Lines, Points, Series
from smolmoe.reports.names import Looks

Row = Mapping[str, Any]
KEEP = 0.9  # of the moving average, per step
_TERMS = {loss.name: loss.label for loss in ROUTER_LOSSES} | {"guidance": "guidance"}


@dataclass(frozen=True)
class History:
    """The rows of one run, by kind."""

    label: str
    rows: Mapping[str, Sequence[Row]]

    @classmethod
    def read(cls, label: str, path: Path) -> History:
        """The `metrics.jsonl` of a run folder, or the file itself, without an incomplete last line.

        Raises:
            DataError: it is missing, or a line is not a row of a run.
        """
        file = path / "metrics.jsonl" if path.is_dir() else path
        try:
            found = read_rows(file)
        except OSError as error:
            raise DataError(
                "the folder holds no metrics of a run.", field=label, value=str(path), fix="Name the folder of a run."
            ) from error
        rows: dict[str, list[Row]] = {}
        for row in found:
            rows.setdefault(row["kind"], []).append(row)
        return cls(label, rows)

    def points(self, kind: str, key: str) -> Points:
        """(step, value) of the rows with this number."""
        found = ((row["step"], row.get(key)) for row in self.rows.get(kind, ()))
        return [(step, float(value)) for step, value in found if value is not None and math.isfinite(value)]

    def routing(self, key: str) -> Points:
        """(step, value) of a routing statistic: of training windows, or held-out without windows."""
        return self.points("window", key) or self.points("held_out", key)


def training_figures(histories: Sequence[History]) -> list[Figure]:
    """The figures that the runs' metrics have numbers for; the balance is of MoEs only."""
    looks = Looks(history.label for history in histories)
    figures = (loss_figure, _domains, _terms, balance_figure) if histories else ()
    return [made for figure in figures if (made := figure(histories, looks)) is not None]


def loss_figure(histories: Sequence[History], looks: Looks) -> Figure | None:
    """Loss on training batches and held out, over steps."""
    panels = [
        ("on training batches, smoothed", "cross-entropy (nats per token)", smoothed_ce),
        ("held out", "loss (nats per token)", lambda history: history.points("held_out", "loss")),
    ]
    caption = "Lower is better; the right panel is on text that the model was not trained on."
    return _curves("training-loss", "Loss over training", caption, panels, histories, looks)


def _domains(histories: Sequence[History], looks: Looks) -> Figure | None:
    names = sorted(
        {name for history in histories for row in history.rows.get("held_out", ()) for name in row.get("by_domain", {})}
    )
    if len(names) < 2:
        return None
    panels = [(name, "held-out loss (nats per token)", _domain(name)) for name in names]
    caption = "A domain whose loss rises while the others fall pays for their gain."
    return _curves("training-domains", "Held-out loss of each domain over training", caption, panels, histories, looks)


def _terms(histories: Sequence[History], looks: Looks) -> Figure | None:
    panels = [
        (words, f"{words} (weighted)", _value("step", key))
        for key, words in _TERMS.items()
        if any(history.points("step", key) for history in histories)
    ]
    caption = "The weighted contribution of each router term to the loss; the cross-entropy is a few nats."
    return _curves("training-terms", "Router terms over training", caption, panels, histories, looks)


def balance_figure(histories: Sequence[History], looks: Looks) -> Figure | None:
    """Load balance, its worst case and active experts, over steps."""
    moes = [history for history in histories if history.routing("balance")]
    panels = [
        ("load balance", "entropy of the load (1 is even)", lambda history: history.routing("balance")),
        ("MaxVio", "highest load / mean load − 1", lambda history: history.routing("max_violation")),
        ("active experts", "experts reached, all layers", lambda history: history.routing("active_experts")),
    ]
    made = _curves(
        "training-balance",
        "Load balance and active experts over training",
        "Even load is 1 on the left and 0 in the middle; the shade spans the least to the most even layer. A drop on "
        "the right means that experts die.",
        panels,
        moes,
        looks,
    )
    return None if made is None else _with_spread_and_alarms(made, moes, looks)


def _with_spread_and_alarms(made: Figure, histories: Sequence[History], looks: Looks) -> Figure:
    balance, violation, active = (panel for panel in made.panels if isinstance(panel, Lines))
    bands = []
    for history in histories:
        rows = [row for row in history.rows.get("window", ()) if row.get("balance_by_layer")]
        if rows:
            layers = [row["balance_by_layer"] for row in rows]
            low, high = [min(each) for each in layers], [max(each) for each in layers]
            bands.append(Band("", [row["step"] for row in rows], low, high, looks(history.label)))
    steps = [row["step"] for history in histories for row in history.rows.get("alarm", ())]
    alarms = [Series("alarm", [(step, 0) for step in steps], alarm=True)] if steps else []
    active = replace(active, series=[*active.series, *alarms], bottom=0)
    return replace(made, panels=[replace(balance, bands=bands), violation, active])


def _curves(
    name: str,
    title: str,
    caption: str,
    panels: Sequence[tuple[str, str, Callable[[History], Points]]],
    histories: Sequence[History],
    looks: Looks,
) -> Figure | None:
    """A panel for each quantity with a line for each run; None without values."""
    made = [
        Lines(
            heading,
            "optimiser steps",
            unit,
            [Series(h.label, points, looks(h.label)) for h in histories if (points := of(h))],
        )
        for heading, unit, of in panels
    ]
    if not any(panel.series for panel in made):
        return None
    return Figure(name, title, caption, made, per_row=min(len(made), 2 if len(made) == 2 else 3), inches=2.7)


def _value(kind: str, key: str) -> Callable[[History], Points]:
    return lambda history: history.points(kind, key)


def _domain(name: str) -> Callable[[History], Points]:
    def points(history: History) -> Points:
        rows = history.rows.get("held_out", ())
        return [(row["step"], row["by_domain"][name]) for row in rows if name in row.get("by_domain", {})]

    return points


def smoothed_ce(history: History) -> Points:
    """An exponential moving average with bias correction."""
    smoothed, total, weight = [], 0.0, 0.0
    for step, loss in history.points("step", "ce"):
        total, weight = KEEP * total + loss, KEEP * weight + 1
        smoothed.append((step, total / weight))
    return smoothed
