"""The values of a block of the tensor program, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from smolmoe.surgery.tensors.initialisers import Values, generator, normal
from smolmoe.surgery.tensors.program import Block

if TYPE_CHECKING:
    from torch import Tensor


class Readable(Protocol):
    """The source of a block: a checkpoint, or tensors in memory laid out like one."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor by its name on disk, or its rows (start, stop)."""
        ...


def block_values(
    block: Block, sources: Mapping[str, Readable], seed: int, rows: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Values of a whole block, float32, of the block's shape.

    Args:
        block: the block to compute.
        sources: checkpoint (or tensors in memory) of every source the block reads.
        seed: of every random stream.
        rows: values for blocks of fill "rows", by the block's stream: [E / repeat, D].
    """
    import torch

    if not block.reads:
        if block.fill != "rows":
            return torch.from_numpy(filled(block, seed))
        return (rows or {})[block.stream].float().repeat_interleave(block.repeat, dim=0)
    values = gathered(block, sources)
    if block.centred is not None:
        values = values - values.mean(block.centred, keepdim=True)
    if block.perturb is not None:
        values = block.perturb.applied(values, seed, block.stream)
    if block.offset:
        values = values + block.offset
    return values if block.scale == 1.0 else values * block.scale


def gathered(block: Block, sources: Mapping[str, Readable]) -> Tensor:
    """The copied values of a block, oriented, averaged over its reads and reordered; nothing else has changed them."""
    import torch

    values = [_read(sources[read.source], read.tensor, block).float() for read in block.reads]
    mean = values[0] if len(values) == 1 else torch.stack(values).mean(0)
    ordered = mean if block.order is None else mean.index_select(block.axis, torch.tensor(block.order))
    return ordered.reshape(block.shape)


def _read(checkpoint: Readable, tensor: str, block: Block) -> Tensor:
    """A source's part of a block, oriented [out, in] and narrowed to its neurons; only the rows needed are read."""
    if block.span is not None and block.axis == 0 and not block.transposed:
        return checkpoint.read(tensor, block.span)
    values = checkpoint.read(tensor)
    values = values.T if block.transposed else values
    return values if block.span is None else values.narrow(block.axis, block.span[0], block.span[1] - block.span[0])


def filled(block: Block, seed: int) -> Values:
    """Values of a filled block whose rows are not supplied."""
    if block.fill == "zeros":
        return np.full(block.shape, block.offset, dtype=np.float32)
    once = normal((block.shape[0] // block.repeat, *block.shape[1:]), generator(seed, block.stream))
    return (once * np.float32(block.std)).repeat(block.repeat, axis=0)
