"""GraniteMoe: GraniteMoeShared without a shared expert, a name that more engines know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from smolmoe.families.moe.granitemoeshared import TARGET as SHARED
from smolmoe.families.types import DenseSpec, MoeSizes, Support


def _config(spec: DenseSpec, sizes: MoeSizes) -> dict[str, Any]:
    return {key: value for key, value in SHARED.config(spec, sizes).items() if key != "shared_intermediate_size"}


TARGET = replace(
    SHARED,
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    names=replace(SHARED.names, shared=None),
    config=_config,
    shared="never",
    engines={
        **SHARED.engines,
        "OpenVINO": Support(),
        "mlx-lm": Support(free_head_dim=False, rope=("default",), activations=("silu",)),
    },
)
