"""Selection biases set on the run's first training text, so that the first step's load is even."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from smolmoe.moe.balanced_bias import TARGET, BalancedBias, find_balanced_bias
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import RoutingCapture, find_routers, selection_biases
from smolmoe.training.distributed import on_main

logger = logging.getLogger(__name__)

KIND = "preset_bias"  # of the row of metrics.jsonl
_INPUTS = ("input_ids", "position_ids")


@torch.no_grad()
def preset_biases(model: Any, capture: RoutingCapture, batches: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """Set the selection biases of all layers; returns the row of `metrics.jsonl`: MaxVio before and after, by layer.

    Every process must call it with the same batches; the first one's biases are everybody's.

    Args:
        model: unwrapped, under the autocast of the training.
        capture: of its routers.
        batches: of the training text, `input_ids` [B, S].
    """
    tokens = 0
    with _as_used(model), capture:
        capture.clear()
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in _INPUTS if name in batch}
            model(**inputs, use_cache=False)
            tokens += inputs["input_ids"].numel()
    found = on_main(lambda: _found(model, capture))
    capture.clear()
    for bias, layer in zip(selection_biases(model).values(), found, strict=True):
        assert bias is not None  # `check_terms` saw it
        bias.copy_(layer.bias)
    _tell(capture.layers, found)
    return {
        "tokens": tokens,
        "max_violation_before": [round(layer.before, 4) for layer in found],
        "max_violation": [round(layer.after, 4) for layer in found],
        "updates": [layer.updates for layer in found],
    }


def _found(model: Any, capture: RoutingCapture) -> list[BalancedBias]:
    routers, biases = find_routers(model), selection_biases(model)
    found = []
    for layer, router in routers:
        bias = biases[layer]
        assert bias is not None
        result = find_balanced_bias(capture.routing(layer).logits, bias, gate_spec(router))
        found.append(BalancedBias(**{**vars(result), "bias": result.bias.cpu()}))
    return found


@contextmanager
def _as_used(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode: no noise, no sampling, no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _tell(layers: list[int], found: list[BalancedBias]) -> None:
    logger.info(
        "Selection biases set: MaxVio %.3f before, %.3f after, mean over layers.",
        sum(layer.before for layer in found) / len(found),
        sum(layer.after for layer in found) / len(found),
    )
    same = [layer for layer, result in zip(layers, found, strict=True) if result.same_for_all and result.before > 0]
    if same:
        logger.warning(
            "Selection biases of layers %s were not set: their routers score the experts alike for every token (their "
            "rows are equal), so no bias balances them. Use random rows, or routing.sample.",
            same,
        )
    uneven = [
        f"{layer} ({result.after:.2f})"
        for layer, result in zip(layers, found, strict=True)
        if result.after > TARGET and not result.same_for_all
    ]
    if uneven:
        logger.warning("Selection biases left a MaxVio above %g in layers %s.", TARGET, ", ".join(uneven))
