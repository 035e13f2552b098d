"""The ways to make copies of an FFN differ. A new one is a class here and an entry of `WAYS`, which its name in the
recipe leads to; its settings are fields of `UpcycleRecipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.tensors.initialisers import add_low_rank, add_noise, choose_neurons, generator, redraw_neurons

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Perturb:
    """A change to copied values that makes experts differ.

    Attributes:
        axis: axis of the neurons in the block: 0 for gate and up, 1 for down.
    """

    axis: int

    def applied(self, values: Tensor, seed: int, stream: str) -> Tensor:
        """The changed values; all randomness comes from the seed and the names of streams."""
        raise NotImplementedError

    def fresh(self, count: int, seed: int) -> Tensor | None:
        """Which of `count` neurons keep nothing of what was copied, as indices; None for ways that keep all."""
        return None


@dataclass(frozen=True)
class Noise(Perturb):
    """Adds N(0, std) to every value."""

    std: float

    def applied(self, values: Tensor, seed: int, stream: str) -> Tensor:
        return add_noise(values, self.std, generator(seed, stream))


@dataclass(frozen=True)
class LowRank(Perturb):
    """Adds B A of a rank and standard deviation, as a LoRA adapter that is merged would (arXiv 2106.09685)."""

    rank: int
    std: float

    def applied(self, values: Tensor, seed: int, stream: str) -> Tensor:
        return add_low_rank(values, self.rank, self.std, generator(seed, stream))


@dataclass(frozen=True)
class Drop(Perturb):
    """Resamples chosen neurons from N(mean, std) of the values they replace (Drop-Upcycling, arXiv 2502.19261).

    Attributes:
        ratio: share of neurons that is chosen, rounded down.
        indices: random stream that chooses them; gate, up and down of one expert share it to drop the same neurons.
    """

    ratio: float
    indices: str

    def applied(self, values: Tensor, seed: int, stream: str) -> Tensor:
        neurons = self.fresh(values.shape[self.axis], seed)
        return redraw_neurons(values, neurons, self.axis, generator(seed, stream))

    def fresh(self, count: int, seed: int) -> Tensor:
        return choose_neurons(count, self.ratio, generator(seed, self.indices))


@dataclass(frozen=True)
class Way:
    """One value of the recipe's `diversify`.

    Attributes:
        settings: the fields of the recipe that it reads -> whether a value is valid, and what it must be.
        make: from the recipe, the expert's name for random streams, the projection and its axis of neurons.
        reason: why the result deviates from the dense model, for the claim.
        biases: it changes the biases of gate and up, too.
    """

    settings: Mapping[str, tuple[Callable[[Any], bool], str]]
    make: Callable[[UpcycleRecipe, str, str, int], Perturb]
    reason: Callable[[UpcycleRecipe], str]
    biases: bool


def _noise_reason(recipe: UpcycleRecipe) -> str:
    return f"N(0, {recipe.noise_std:g}) is added to every expert weight."


def _lora_reason(recipe: UpcycleRecipe) -> str:
    return f"A random matrix of rank {recipe.lora_rank} and std {recipe.lora_std:g} is added to every expert matrix."


def drop(ratio: float, expert: str, axis: int, slot: str = "") -> Drop:
    """Drop for one projection of an expert; `slot` names the projection where each chooses its own neurons."""
    return Drop(axis, ratio, f"{expert}.drop" + (f".{slot}" if slot else ""))


def _drop(recipe: UpcycleRecipe, expert: str, slot: str, axis: int) -> Drop:
    return drop(recipe.drop_ratio, expert, axis, slot if recipe.drop_independent else "")


def _drop_reason(recipe: UpcycleRecipe) -> str:
    which = "independently for gate, up and down" if recipe.drop_independent else "the same for gate, up and down"
    return f"Drop-Upcycling re-initialises {recipe.drop_ratio:.0%} of each expert's neurons, {which}."


WAYS: dict[str, Way] = {
    "noise": Way(
        {"noise_std": (lambda value: value > 0, "must be positive.")},
        lambda recipe, expert, slot, axis: Noise(axis, recipe.noise_std),
        _noise_reason,
        biases=False,
    ),
    "lora": Way(
        {
            "lora_rank": (lambda value: value >= 1, "must be at least 1."),
            "lora_std": (lambda value: value > 0, "must be positive."),
        },
        lambda recipe, expert, slot, axis: LowRank(axis, recipe.lora_rank, recipe.lora_std),
        _lora_reason,
        biases=False,
    ),
    "drop": Way(
        {
            "drop_ratio": (lambda value: 0 < value <= 1, "must be above 0 and at most 1."),
            "drop_independent": (lambda value: True, ""),
        },
        _drop,
        _drop_reason,
        biases=True,
    ),
}
