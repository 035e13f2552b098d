"""OLMo 3: OLMo 2 with sliding windows, and with rotary parameters for each type of layer.

FlexOlmo has neither, so it fits only where no window acts and all layers rotate alike.
"""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation
from smolmoe.families.dense.llama import LLAMA_MLP
from smolmoe.families.types import DenseFamily, DenseSpec


def _windows(config: Any) -> tuple[int | None, ...]:
    """A window as wide as the context never acts."""
    window = config.sliding_window
    acts = window is not None and window < config.max_position_embeddings
    return tuple(window if acts and kind == "sliding_attention" else None for kind in config.layer_types)


def _adapt(spec: DenseSpec, target: str) -> Adaptation:
    ropes = [spec.config["rope_parameters"][kind] for kind in sorted(set(spec.config["layer_types"]))]
    refusals = (
        ["it rotates all layers alike, the source windowed and full ones differently"]
        if ropes != ropes[:1] * len(ropes)
        else []
    )
    return Adaptation(config={"rope_parameters": ropes[0]}, refusals=refusals)


FAMILY = DenseFamily(
    model_type="olmo3",
    examples="OLMo 3 with its context limited to the window",
    mlp=LLAMA_MLP,
    targets=("flex_olmo",),
    attention_bias="config",
    qk_norm="full",
    windows=_windows,
    adapt=_adapt,
    by_class=True,
)
