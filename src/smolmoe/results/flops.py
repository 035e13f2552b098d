"""FLOPs of a model, as they were counted and as its sizes say."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import computed_field


@dataclass(frozen=True)
class Flops:
    """Of one pass, per token.

    Attributes:
        positions: of the sequence: of the prompt, or the one decoded and those before it.
        parts: counted, by name from `PARTS`; those that the model does not have are left out.
        expected: the same from the sizes of the matrices and K of E experts.
    """

    positions: int
    parts: dict[str, float]
    expected: dict[str, float]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def expected_total(self) -> float:
        return sum(self.expected.values())


@dataclass(frozen=True)
class TrainFlops:
    """Of forward and backward pass, per token: counted, and expected of the forward pass as it was counted."""

    positions: int
    total: float
    expected_total: float


@dataclass(frozen=True)
class ExpertWork:
    """How many experts computed for a token, by their FLOPs over those of one.

    Attributes:
        experts, top_k: E and K.
        prefill, decode: counted; K where only the chosen experts compute, E where all do.
        train: forward and backward; None where it was not counted.
    """

    experts: int
    top_k: int
    prefill: float
    decode: float
    train: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def only_chosen(self) -> bool:
        """Whether K experts computed for every token; the weighted sum of their outputs may count as a bit of one."""
        counted = [self.prefill, self.decode, *([] if self.train is None else [self.train])]
        return all(round(value) == self.top_k for value in counted)


@dataclass(frozen=True)
class FlopCounts:
    """What `count_flops` found; `experts` is None for a dense model, `train` where it was not asked for."""

    prefill: Flops
    decode: Flops
    train: TrainFlops | None
    experts: ExpertWork | None
