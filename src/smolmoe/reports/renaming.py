"""A comparison with the labels of a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from smolmoe.evaluation.compare.verdict import verdict, warnings
from smolmoe.results.comparison import CheckpointResult, Comparison


def under_names(found: Comparison, names: Mapping[str, str]) -> Comparison:
    """The same comparison with other names of its models, also in its sentences."""
    if all(key == value for key, value in names.items()):
        return found

    def of(name: str) -> str:
        return names.get(name, name)

    def checkpoint(one: CheckpointResult) -> CheckpointResult:
        if one.training is None or one.training.since is None:
            return one
        return replace(one, training=replace(one.training, since=of(one.training.since)))

    models = tuple(
        replace(model, name=of(model.name), checkpoints=tuple(map(checkpoint, model.checkpoints)))
        for model in found.models
    )
    pairs = tuple(replace(pair, first=of(pair.first), second=of(pair.second)) for pair in found.pairs)
    update = {
        "models": models,
        "pairs": pairs,
        "winners": {measure: tuple(map(of, won)) for measure, won in found.winners.items()},
        "verdict": verdict(models, pairs, found.unit),
        "warnings": warnings(models, found.text, found.unit),
    }
    return found.model_copy(update=update)
