"""Training on a teacher's cached targets: checks of the recipe, and the losses of a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.data.same_tokenizer import tokenizer_difference
from smolmoe.data.targets import TOKENIZER, TargetCache, open_cache
from smolmoe.errors import DataError, RequestError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.recipe import TrainRecipe
from smolmoe.training.distillation_losses import IGNORED, losses_of_rows, shifted

INPUTS = ("target_ids", "target_values", "target_rest")  # in a batch, in addition to the model's inputs


@dataclass(frozen=True)
class Distillation:
    """Cross-entropy and divergence from the teacher, as a loss function of transformers' Trainer.

    Attributes:
        cache: the teacher's targets.
        weight: w of (1 - w) CE + w T^2 KL.
    """

    cache: TargetCache
    weight: float

    def pack(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the targets moved into the labels, which the model does not see."""
        absent = [name for name in (*INPUTS, "labels") if name not in inputs]
        if absent:
            raise RequestError("the batches have no teacher targets.", field="distill", value=absent[0])
        packed = {name: inputs[name] for name in (*INPUTS, "labels")}
        return {name: value for name, value in inputs.items() if name not in INPUTS} | {"labels": packed}

    def __call__(
        self, outputs: Any, labels: Mapping[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """[CE, w T^2 KL] of the micro-batch: divided by the step's number of items if it is given, else means.

        Position i predicts token i + 1, in labels and targets alike.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        ids, values, rest = (shifted(labels[name], 0.0) for name in INPUTS)
        wanted = shifted(labels["labels"], IGNORED)
        cross_entropy, divergence = losses_of_rows(
            logits.flatten(0, 1),
            wanted,
            ids,
            values,
            rest,
            sampled=self.cache.kind == "sampled",
            temperature=self.cache.temperature,
        )
        items = (wanted != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        factor = self.weight * self.cache.temperature**2
        return torch.stack([cross_entropy.sum(), factor * divergence.sum()]) / items

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises DataError if the student's tokenizer differs from the teacher's, naming the differing tokens."""
        theirs = load_tokenizer(self.cache.folder / TOKENIZER)
        if theirs is None:
            raise DataError(
                "the cache has no tokenizer.",
                field="distill.cache",
                value=str(self.cache.folder),
                fix="Create the cache again.",
            )
        said = tokenizer_difference(theirs, tokenizer, names=("teacher", "student"))
        if said is not None:
            raise DataError(
                f"the teacher's tokenizer differs from the student's: {said}.",
                field="distill.cache",
                value=str(self.cache.folder),
                fix="Use a teacher with the student's tokenizer, or the teacher's for a new student.",
            )


def open_distillation(recipe: TrainRecipe, tokenizer: Any = None) -> Distillation | None:
    """The teacher that the recipe names; None without one.

    Args:
        tokenizer: of the student, if it is known already.

    Raises:
        DataError: the cache cannot be read, or the teacher has another tokenizer; RequestError: it has another
            temperature, or label smoothing is set, too.
    """
    asked = recipe.distill
    if asked is None:
        return None
    cache = open_cache(asked.cache)
    if asked.temperature not in (None, cache.temperature):
        raise RequestError(
            f"the cache has the teacher's probabilities at temperature {cache.temperature:g}; others cannot "
            "be derived from it.",
            field="distill.temperature",
            value=asked.temperature,
            fix=f"Remove it, or create a cache with `temperature={asked.temperature:g}`.",
        )
    if recipe.trainer.get("label_smoothing_factor"):
        raise RequestError(
            "the teacher's probabilities replace smoothed labels.",
            field="trainer.label_smoothing_factor",
            value=recipe.trainer["label_smoothing_factor"],
            fix="Remove it.",
        )
    found = Distillation(cache, asked.weight)
    if tokenizer is not None:
        found.check_tokenizer(tokenizer)
    return found
