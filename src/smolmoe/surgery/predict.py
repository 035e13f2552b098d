"""The error of a plan that deviates by design, computed on the dense model before anything is written.

Each layer's program is evaluated in memory and run, with its own router, on the dense FFN's actual inputs.
Gaussian inputs are not accurate enough: on trained models they miss the error by a factor of up to two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smolmoe.surgery.ffn import MoeLayer
from smolmoe.surgery.ffn_inputs import each_layers_inputs
from smolmoe.surgery.plan import Plan
from smolmoe.surgery.sources import BASE
from smolmoe.surgery.tensors.values import block_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from smolmoe.moe.reference import Ffn

TOKENS = 256


def with_predictions(plan: Plan, sequences: Sequence[Sequence[int]], rows: Mapping[str, Tensor] | None = None) -> Plan:
    """The plan with its claim's errors filled in, if its deviation can be predicted.

    Args:
        plan: any.
        sequences: token ids of some text.
        rows: router rows by stream, where the plan asks for them.
    """
    if plan.claim.kind != "deviates":
        return plan
    errors: list[float | None] = [None] * plan.spec.layers

    def consume(layer: int, inputs: list[Tensor]) -> None:
        if layer in plan.layout.moe_layers:
            errors[layer] = _layer_error(plan, layer, _spread(inputs), rows or {})

    each_layers_inputs(plan.sources[BASE].checkpoint.folder, sequences, consume, device=plan.recipe.device)
    return replace(plan, claim=replace(plan.claim, predicted_ffn_error=tuple(errors)))


def _spread(inputs: list[Tensor]) -> Tensor:
    """At most TOKENS inputs, taken evenly from all sequences."""
    import torch

    x = torch.cat(inputs)
    return x[torch.linspace(0, len(x) - 1, min(TOKENS, len(x))).long()]


def _layer_error(plan: Plan, layer: int, x: Tensor, rows: Mapping[str, Tensor]) -> float:
    """|moe(x) - ffn(x)| / |ffn(x)|, Frobenius norms, of one layer's program."""
    from transformers.activations import ACT2FN

    from smolmoe.moe.reference import choose, routed_output

    moe = plan.layer(layer)
    act = ACT2FN[plan.spec.mlp.activation]
    router = _values(plan, moe.router_rows(), rows)
    gates, indices = choose(x @ router.T, plan.layout.top_k, plan.scoring, plan.layout.gate_scale)
    out = routed_output(x, gates, indices, [_expert(plan, moe, e) for e in range(plan.layout.experts)], act)
    if plan.layout.shared_width:
        out = out + _shared(plan, moe)(x, act) * (0.5 if plan.target.shared_gated else 1.0)
    dense = dense_ffn(plan, layer)(x, act)
    return float((out - dense).norm() / dense.norm())


def _values(plan: Plan, block: Any, rows: Mapping[str, Tensor] | None = None) -> Tensor:
    """A block as it will be stored: rounded to the files' dtype."""
    import torch

    sources = {name: source.checkpoint for name, source in plan.sources.items()}
    return block_values(block, sources, plan.recipe.seed, rows).to(getattr(torch, plan.config["dtype"])).float()


def _ffn(plan: Plan, projection: Any) -> Ffn:
    from smolmoe.moe.reference import Ffn

    names = ("gate", "up", "down") if plan.spec.mlp.gated else ("up", "down")
    weights = {name: _values(plan, projection(name)) for name in names}
    if plan.spec.mlp.bias:
        weights |= {f"{name}_bias": _values(plan, projection(name, bias=True)) for name in names}
    return Ffn(**weights)


def _expert(plan: Plan, moe: MoeLayer, expert: int) -> Ffn:
    return _ffn(plan, lambda name, bias=False: moe.projection(expert, name, bias=bias))


def _shared(plan: Plan, moe: MoeLayer) -> Ffn:
    return _ffn(plan, moe.shared_projection)


def dense_ffn(plan: Plan, layer: int) -> Ffn:
    """The base's FFN of a layer, rounded to the files' dtype."""
    return _ffn(plan, plan.layer(layer).dense_projection)
