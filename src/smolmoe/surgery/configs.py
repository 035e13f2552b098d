"""The output's config.json: every source setting that attention, norms and vocabulary need, made explicit."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from smolmoe.families import DenseSpec, MoeTarget
from smolmoe.families.fit import settings
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.request import Layout
from smolmoe.surgery.sources import Source


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
    config |= settings(spec, target, layout.sizes(spec))
    if recipe.expert:
        config["expert_names"] = [
            list(recipe.expert)[e // layout.parts % len(recipe.expert)] for e in range(layout.experts)
        ]
    return config
