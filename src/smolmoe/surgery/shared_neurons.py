"""Which neurons of each FFN the shared expert holds, ranked on text.

The choice is data of a plan, as router rows are: smolmoe.json holds it (`to_hex`), so that every later command rebuilds
the same program without the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smolmoe.surgery.ffn_inputs import each_layers_inputs, sequence_length
from smolmoe.surgery.plan import Plan
from smolmoe.surgery.predict import dense_ffn
from smolmoe.surgery.sources import BASE

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCES = 24  # of up to SEQUENCE tokens
# A neuron is active on a token that has it among this share of its largest |activations| (CMoE, arXiv 2502.04416).
ACTIVE = 0.1


@dataclass(frozen=True)
class SharedNeurons:
    """The neurons of the shared expert.

    Attributes:
        by: "importance" or "rate".
        tokens: number of tokens they were ranked on.
        neurons: by MoE layer, in ascending order.
        held: by MoE layer, their share of the sum over all neurons of what they were ranked by.
    """

    by: str
    tokens: int
    neurons: dict[int, tuple[int, ...]]
    held: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        return {"by": self.by, "tokens": self.tokens, "held": {str(i): round(v, 4) for i, v in self.held.items()}}


def rank_neurons(plan: Plan, tokenizer: Any) -> SharedNeurons:
    """The shared neurons of a request with `shared_by: importance` or `rate`.

    Raises:
        DataError: the calibration text cannot be read or is empty.
    """
    import torch

    from smolmoe.data.text import default_documents, encode, read_documents

    recipe, width = plan.recipe, plan.layout.shared_width
    folder = plan.sources[BASE].checkpoint.folder
    documents = read_documents(recipe.calibration) if recipe.calibration else default_documents()
    named = {"data": str(recipe.calibration)} if recipe.calibration else {}
    length = sequence_length(folder)
    sequences = encode(tokenizer, documents, length=length, count=SEQUENCES, seed=recipe.seed, **named)
    neurons: dict[int, tuple[int, ...]] = {}
    held: dict[int, float] = {}

    def consume(layer: int, inputs: list[Tensor]) -> None:
        if layer in plan.layout.moe_layers:
            scores = _scores(plan, layer, inputs)
            # Stable, so that equal neurons are taken in their order on every machine.
            first = scores.argsort(descending=True, stable=True)[:width]
            neurons[layer] = tuple(sorted(first.tolist()))
            held[layer] = float(scores[first].sum() / scores.sum().clamp(min=torch.finfo(scores.dtype).tiny))

    each_layers_inputs(folder, sequences, consume, device=recipe.device)
    return SharedNeurons(recipe.shared_by, sum(map(len, sequences)), neurons, held)


def _scores(plan: Plan, layer: int, inputs: Iterable[Tensor]) -> Tensor:
    """What the neurons of a layer are ranked by, [F] in float64."""
    import torch
    from transformers.activations import ACT2FN

    ffn, act = dense_ffn(plan, layer), ACT2FN[plan.spec.mlp.activation]
    sums = torch.zeros(plan.spec.ffn_size, dtype=torch.float64)
    count, active = 0, max(1, int(ACTIVE * plan.spec.ffn_size))
    for x in inputs:
        size = ffn.hidden(x, act).abs()
        if plan.recipe.shared_by == "rate":
            size = torch.zeros_like(size).scatter_(1, size.topk(active, dim=1).indices, 1.0)
        sums += size.sum(0, dtype=torch.float64)
        count += len(x)
    mean = sums / max(1, count)
    return mean if plan.recipe.shared_by == "rate" else mean * ffn.down.double().norm(dim=0)


def to_hex(neurons: Mapping[int, tuple[int, ...]]) -> dict[str, str]:
    """By layer, a number in base 16 whose bit i says whether neuron i is shared."""
    return {str(layer): f"{sum(1 << i for i in chosen):x}" for layer, chosen in neurons.items()}


def from_hex(found: Mapping[str, str]) -> dict[int, tuple[int, ...]]:
    """What `to_hex` wrote.

    Raises:
        ValueError: not a number in base 16.
    """
    return {int(layer): _bits(int(text, 16)) for layer, text in found.items()}


def _bits(mask: int) -> tuple[int, ...]:
    return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
