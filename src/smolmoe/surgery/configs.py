"""The output's config.json: every source setting that attention, norms and vocabulary need, made explicit."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from smolmoe.families import DenseSpec, MoeTarget
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.request import Layout
from smolmoe.surgery.sources import Source

# Copied with explicit None: several MoE classes have their own defaults for these (pad and eos in FlexOlmo, bos
# and eos in Mixtral and Granite).
COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)


def moe_config(
    recipe: UpcycleRecipe, spec: DenseSpec, target: MoeTarget, layout: Layout, base: Source
) -> dict[str, Any]:
    """config.json of the result, as plain data."""
    up = base.tensors[base.slot_name(layout.moe_layers[0], spec.mlp.up)]
    config: dict[str, Any] = {
        "architectures": [target.architecture],
        "model_type": "smolmoe" if target.name == "generic" else target.name,
        "dtype": recipe.dtype or up.dtype,
        "transformers_version": version("transformers"),
        "output_router_logits": False,
    }
    if target.name == "generic":
        config |= {
            k: spec.config.get(k) for k in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")
        }
    else:
        config |= {key: spec.config[key] for key in COMMON}
        config |= {
            "num_key_value_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "hidden_act": spec.mlp.activation,
        }
    config |= target.config(spec, layout.sizes(spec))
    if recipe.expert:
        config["expert_names"] = [
            list(recipe.expert)[e // layout.granularity % len(recipe.expert)] for e in range(layout.experts)
        ]
    return config
