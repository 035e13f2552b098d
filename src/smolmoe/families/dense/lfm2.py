"""LFM2: short convolutions in most layers, attention with a norm over each head of q and k in the rest."""

from __future__ import annotations

from typing import Any

from smolmoe.families.types import DenseFamily, MlpLayout, Slot


def _ffn_width(config: Any) -> int:
    """F: the config's width, by default reduced to 2/3, multiplied and rounded up to a multiple, as in the class."""
    width = int(config.intermediate_size)
    if not config.block_auto_adjust_ff_dim:
        return width
    width = 2 * width // 3
    if config.block_ffn_dim_multiplier is None:
        return width
    multiple = int(config.block_multiple_of)
    return -(-int(config.block_ffn_dim_multiplier * width) // multiple) * multiple


FAMILY = DenseFamily(
    model_type="lfm2",
    examples="LFM2, LFM2.5",
    mlp=MlpLayout("model.layers", "feed_forward", Slot("w1"), Slot("w3"), Slot("w2")),
    targets=("lfm2_moe",),
    qk_norm="head",
    ffn_width=_ffn_width,
    plain_width={"block_auto_adjust_ff_dim": False},
    by_class=True,
)
