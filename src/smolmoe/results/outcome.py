"""What a training or an alignment changed: measured before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Unit = Literal["nats per token", "nats", "share", "percent"]


@dataclass(frozen=True)
class Measured:
    """One measurement before and after, on the same held-out text.

    Attributes:
        before: None if it was not measured, or on other text.
        unit: a share is of 1, a percentage of 100.
    """

    name: str
    before: float | None
    after: float
    unit: Unit

    def shown(self, value: float | None) -> str:
        """A value with its unit's digits."""
        if value is None:
            return "not measured"
        return f"{value:.1%}" if self.unit == "share" else f"{value:.{1 if self.unit == 'percent' else 4}f}"

    def __str__(self) -> str:
        return f"{self.shown(self.before)} -> {self.shown(self.after)}"


@dataclass(frozen=True)
class Outcome:
    """What a run changed, and what it took.

    Attributes:
        measured: the held-out loss, then what else the kind of run measures.
        verdict: better, worse or unclear, of the held-out loss; None if it was not measured before.
        tokens, seconds: of training, without measurements.
        model: folder of the trained model.
        source: the model that it was made from; None for a new one.
    """

    measured: tuple[Measured, ...]
    verdict: str | None
    tokens: int
    seconds: float
    model: Path
    source: str | None

    @property
    def tokens_per_second(self) -> float | None:
        """None for a run without a step."""
        return self.tokens / self.seconds if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "model": str(self.model), "tokens_per_second": self.tokens_per_second}


def training_measured(summary: Mapping[str, Any]) -> list[Measured]:
    """What a training's summary holds."""
    before = summary.get("before", {}).get("loss")
    return [Measured("held-out loss", before, summary["held_out"]["loss"], "nats per token")]


def alignment_measured(summary: Mapping[str, Any]) -> list[Measured]:
    """What an alignment's summary holds: the loss, of pairs the preferences, and corrections."""
    before, after = summary["before"], summary["after"]
    measured = [Measured("held-out loss", before["loss"], after["loss"], "nats per token")]
    if "margin" in before:
        measured += [
            Measured("chosen answer more likely", before["accuracy"], after["accuracy"], "share"),
            Measured("margin", before["margin"], after["margin"], "nats"),
        ]
    if "corrections" in summary:
        first, last = (summary["corrections"][when]["model"]["metrics"] for when in ("before", "after"))
        measured += [Measured(name, first[name]["value"], last[name]["value"], "percent") for name in last]
    return measured


def outcome(model: Path, source: str | None, summary: Mapping[str, Any], measured: Sequence[Measured]) -> Outcome:
    """The outcome of a run, from its summary and what that holds."""
    verdict = summary.get("change", {}).get("verdict")
    return Outcome(tuple(measured), verdict, summary["tokens"], summary["train_seconds"], model, source)
