"""The generic MoE: the unchanged dense class, with our blocks in place of its FFNs. It expresses every request."""

from __future__ import annotations

from typing import Any

from smolmoe.core.model_code import AUTO_MAP
from smolmoe.families.types import DenseSpec, ExpertNames, MoeNames, MoeSizes, MoeTarget, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {
        "auto_map": dict(AUTO_MAP),
        "text_config": spec.config,
        "layers_module": spec.mlp.layers,
        "mlp_module": spec.mlp.module,
        "gated": spec.mlp.gated,
        "mlp_bias": spec.mlp.bias,
        "hidden_act": spec.mlp.activation,
        "mlp_dropout": spec.mlp.dropout,
        "moe_layers": [i for i in range(spec.layers) if i not in sizes.dense_layers],
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.top_k,
        "moe_intermediate_size": sizes.width,
        "shared_expert_intermediate_size": sizes.shared_width,
        "scoring_func": "softmax" if sizes.gate_scale is None else "sigmoid",
        **sizes.gates,
    }


TARGET = MoeTarget(
    name="generic",
    architecture="SmolMoeForCausalLM",
    names=MoeNames(
        router="gate.weight",
        memory_router="gate.weight",
        experts=ExpertNames(gate_up="experts.gate_up_proj", up="experts.up_proj", down="experts.down_proj"),
        memory_experts="experts",
        shared=ExpertNames(
            gate_up="shared_expert.gate_up_proj.weight",
            up="shared_expert.up_proj.weight",
            down="shared_expert.down_proj.weight",
        ),
        selection_bias="gate.e_score_correction_bias",
    ),
    config=_config,
    attention_bias=("none", "qkv", "qkvo", "other"),
    windows="layers",
    shared="optional",
    dense_layers="any",
    # vLLM's Transformers backend builds the dense model by transformers, replaces the router by its own, and computes
    # all experts with SiLU.
    engines={
        "vLLM": Support(
            scores="softmax",
            selection_bias=False,
            activations=("silu",),
            plain_ffn=False,
            needs="--trust-remote-code",
        )
    },
    scoring_key="scoring_func",
    independent_gates=True,
)
