"""Experts ordered by use: the same MoE, with the most used expert of each layer first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.results.gguf import Order
from smolmoe.surgery.experts.moe_files import MoeFiles

if TYPE_CHECKING:
    from torch import Tensor


def order_by_use(files: MoeFiles, text: str | Path) -> Order:
    """Count gate weights on a text, and order the experts of each layer by them.

    Raises:
        DataError: the text cannot be read.
    """
    from smolmoe.surgery.experts.measure import expert_use, read_windows

    return ordered(files, expert_use(files.folder, read_windows(files, text), "cpu").gates, text)


def ordered(files: MoeFiles, use: Mapping[int, Tensor], text: str | Path) -> Order:
    """The order for given uses [E] by layer. The shards of a split FFN stay together.

    A layer in which two FFNs have equal router rows keeps its order, because the router chooses among equal scores
    by place.
    """
    size, experts, kept = files.granularity, {}, []
    firsts = range(0, files.experts, size)
    for layer, gates in use.items():
        rows = files.parts.read(files.layers[layer].router)[list(firsts)]
        if len(rows.unique(dim=0)) < len(rows):
            experts[layer] = tuple(range(files.experts))
            kept.append(layer)
            continue
        groups = gates.unflatten(0, (-1, size)).sum(1).argsort(descending=True, stable=True).tolist()
        experts[layer] = tuple(group * size + shard for group in groups for shard in range(size))
    return Order(str(text), experts, tuple(kept))
