"""The learning-rate schedule of trainings of several lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.errors import RequestError
from smolmoe.recipe import TrainRecipe
from smolmoe.training.arguments import DEFAULTS

TRUNK = "warmup_stable_decay"
CONSTANT = ("constant", "constant_with_warmup")
DECAY = 0.2  # default share of a budget's steps in which the rate decays (arXiv 2405.18392)
_EVER = 10**12  # steps of a training without an end


@dataclass(frozen=True)
class Rate:
    """The learning-rate schedule, so that a budget's training ends like a separate one of its length.

    Attributes:
        kind: "trunk", "constant" or "own", as in `Schedule`.
        name: `lr_scheduler_type`.
        warmup: steps; below 1 as a share of a run's steps.
        decay: for a trunk, as a share of the steps.
        options: other `lr_scheduler_kwargs`.
    """

    kind: str
    name: str
    warmup: float
    decay: float | None
    options: dict[str, Any]

    @property
    def text(self) -> str:
        if self.kind == "trunk":
            return (
                f"The budgets of a seed share one training at constant rate; each branches off for a decay over the "
                f"last {self.decay:.0%} of its steps (arXiv 2405.18392), and equals a separate training of its length."
            )
        if self.kind == "constant":
            return "The rate is constant: each budget is a point of one training, without a decay."
        return (
            f"Each budget is a separate training with the complete {self.name} schedule: part of a longer training "
            "would not have finished its schedule."
        )

    def decay_steps(self, steps: int) -> int:
        return max(1, round((self.decay or 0.0) * steps))

    def branches_at(self, steps: int) -> int:
        """The step at which a budget leaves the trunk."""
        return steps - self.decay_steps(steps)

    def trainer(self, steps: int, *, whole: bool = True) -> dict[str, Any]:
        """The trainer's values for a run of this number of steps; not `whole` for a trunk."""
        values: dict[str, Any] = {"max_steps": steps, "lr_scheduler_type": self.name, "warmup_steps": self.warmup}
        if self.kind != "trunk":
            return values | ({"lr_scheduler_kwargs": self.options} if self.options else {})
        # Steps at the full rate are explicit, not derived: a resumed trunk must continue at its stored rate.
        stable = self.branches_at(steps) - int(self.warmup) if whole else _EVER
        own = {"num_decay_steps": self.decay_steps(steps) if whole else 1, "num_stable_steps": stable}
        return values | {"lr_scheduler_kwargs": {"decay_type": "1-sqrt", **self.options, **own}}


def rate_of(recipe: TrainRecipe, steps: Sequence[int]) -> Rate:
    """The schedule of trainings with these numbers of steps, ascending.

    Raises:
        RequestError: the shortest has no room for its warm-up and decay.
    """
    trainer = {**DEFAULTS, **recipe.trainer}
    name, warmup = str(trainer["lr_scheduler_type"]), float(trainer["warmup_steps"])
    options = dict(trainer.get("lr_scheduler_kwargs") or {})
    if name != TRUNK and name not in CONSTANT:
        return Rate("own", name, warmup, None, options)
    fixed = float(math.ceil(warmup * steps[0])) if warmup < 1 else warmup  # the same for all, because they share it
    if name in CONSTANT:
        return Rate("constant", name, fixed, None, options)
    given, of = options.pop("num_decay_steps", None), recipe.trainer.get("max_steps")
    options.pop("num_stable_steps", None)
    decay = DECAY if given is None or not of else float(given) / float(of)
    rate = Rate("trunk", name, fixed, decay, options)
    if not 0 < decay < 1 or rate.branches_at(steps[0]) < max(1.0, fixed):
        raise RequestError(
            f"the smallest budget is {steps[0]} steps, which is too short for {fixed:.0f} steps of warm-up and "
            f"{rate.decay_steps(steps[0])} of decay.",
            field="tokens",
            value=steps[0],
            fix="Raise it, or shorten trainer.warmup_steps and num_decay_steps of trainer.lr_scheduler_kwargs.",
        )
    return rate
