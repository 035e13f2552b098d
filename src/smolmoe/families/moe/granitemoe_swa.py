"""GraniteMoeSWA: GraniteMoeShared with a window and a rotary base (0: none) for each layer, and attention sinks.

A sink of -1e4 adds exp(-1e4) = 0 to the sum of the softmax: nothing, in every dtype.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation, added
from smolmoe.families.forms import twin
from smolmoe.families.moe.granitemoeshared import TARGET as SHARED
from smolmoe.families.types import DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support

NO_SINK = -1e4


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    theta = spec.config["rope_parameters"]["rope_theta"]
    own = spec.config.get("layer_rope_theta") if spec.model_type == "granite_swa" else None
    return {
        **SHARED.config(spec, sizes),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in spec.windows],
        # Without a window on any layer the class still wants one.
        "sliding_window": max(filter(None, spec.windows), default=spec.config["max_position_embeddings"]),
        "layer_rope_theta": own or [theta if rotates else 0 for rotates in spec.rotated],
    }


def _adapt(spec: DenseSpec) -> Adaptation:
    if spec.model_type == "granite_swa":
        return Adaptation()
    return Adaptation((added("self_attn.q_proj.weight", "self_attn.sinks", NO_SINK, (spec.heads,)),))


TARGET = MoeTarget(
    name="granitemoe_swa",
    architecture="GraniteMoeSWAForCausalLM",
    names=MoeNames(
        router="block_sparse_moe.router.weight",
        memory_router="block_sparse_moe.router.weight",
        experts=ExpertNames(gate_up="block_sparse_moe.experts.gate_up_proj", down="block_sparse_moe.experts.down_proj"),
        memory_experts="block_sparse_moe.experts",
        shared=SHARED.names.shared,
    ),
    config=_config,
    dense=lambda settings: twin(settings, "granite_swa"),
    adapt=_adapt,
    attention_bias=SHARED.attention_bias,
    zero_biases=SHARED.zero_biases,
    windows="layers",
    unrotated=True,
    multipliers=True,
    shared="optional",
    renormalises=True,
    count="num_local_experts",
    # llama.cpp loads it and computes something else, or ends with SIGABRT.
    engines={"vLLM": Support(free_head_dim=False, attention_bias=False)},
)
