"""Beam: norms before and after attention and FFN, an attention output gate, sigmoid scores with a selection bias.

It divides the residual stream by the square root of the number of branches added so far. Norms do not see a scale,
except in their epsilon: what Beam computes from a plain residual stream is equal up to that.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation, added, scaled
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS
from smolmoe.families.types import DenseSpec, MoeNames, MoeSizes, MoeTarget


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    config = spec.config
    return {
        "attention_bias": spec.attention_bias != "none",
        "sliding_window": config["sliding_window"],
        "layer_types": config["layer_types"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "intermediate_size": sizes.dense_width,
        "mlp_layer_types": ["dense" if i in sizes.dense_layers else "sparse" for i in range(spec.layers)],
        **sizes.gates,
        "n_group": 1,
        "topk_group": 1,
    }


def _adapt(spec: DenseSpec) -> Adaptation:
    """A gate of zeros is sigmoid(0) = 1/2 on what o_proj reads."""
    gate = (spec.heads * spec.head_dim, spec.hidden_size)
    additions = 2 * spec.layers + 1
    return Adaptation(
        (
            added("self_attn.q_proj.weight", "self_attn.gate_proj.weight", shape=gate),
            added("self_attn.q_proj.weight", "self_attn.gate_bias", shape=(spec.heads,)),
            scaled("self_attn.o_proj.weight", by=2.0),
        ),
        limits=(
            "This class divides the residual stream by the square root of the number of branches added to it, which "
            f"its norms undo except for their epsilon: theirs counts up to {additions} times as much, a relative "
            f"difference of at most {(additions - 1) / 2 * spec.config['rms_norm_eps']:.1e} / (mean square of the "
            "residual stream).",
        ),
    )


TARGET = MoeTarget(
    name="beam",
    architecture="BeamForCausalLM",
    names=MoeNames(
        router="mlp.gate.weight",
        memory_router="mlp.gate.weight",
        experts=PROJ_EXPERTS,
        memory_experts="mlp.experts",
        selection_bias="mlp.gate.e_score_correction_bias",
    ),
    config=_config,
    adapt=_adapt,
    attention_bias=("none", "qkvo"),
    windows="layers",
    dense_layers="any",
    scoring="sigmoid",
    independent_gates=True,
    min_experts=2,  # its router sums the two best scores of each expert group
)
