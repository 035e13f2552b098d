"""FLOPs of a model, counted and expected."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import computed_field


@dataclass(frozen=True)
class Flops:
    """FLOPs of one pass, per token.

    Attributes:
        positions: length of the sequence: the prompt, or the decoded token and those before it.
        parts: counted, by name from `PARTS`; without parts that the model lacks.
        expected: from the sizes of the matrices and K of E experts.
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
    """FLOPs of forward and backward pass, per token: counted, and expected from the counted forward pass."""

    positions: int
    total: float
    expected_total: float


@dataclass(frozen=True)
class ExpertWork:
    """How many experts computed per token: their FLOPs divided by those of one expert.

    Attributes:
        experts, top_k: E and K.
        prefill, decode: counted; K if only the chosen experts compute, E if all compute.
        train: forward and backward; None if not counted.
    """

    experts: int
    top_k: int
    prefill: float
    decode: float
    train: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def only_chosen(self) -> bool:
        """Whether K experts computed for every token; the weighted sum of outputs may add a fraction of one."""
        counted = [self.prefill, self.decode, *([] if self.train is None else [self.train])]
        return all(round(value) == self.top_k for value in counted)


@dataclass(frozen=True)
class FlopCounts:
    """The result of `count_flops`; `experts` is None for a dense model, `train` if it was not requested."""

    prefill: Flops
    decode: Flops
    train: TrainFlops | None
    experts: ExpertWork | None
