"""The vocabulary of the tensor program: for every output tensor, the origin of each of its values.

A program is data. The writer executes it, the claim and the parameter counts are derived from it, and everything else
that needs to know which value went where (extraction, carrying Adam's moments, provenance) reads it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from smolmoe.families.adapt import Piece
from smolmoe.surgery.tensors.diversify import Perturb

Region = tuple[int | tuple[int, int], ...]
Role = Literal["kept", "expert", "shared", "router", "new"]


@dataclass(frozen=True)
class Read:
    """A tensor of a source: `source` is "base" or a specialist's name, `tensor` its name on disk there."""

    source: str
    tensor: str


@dataclass(frozen=True)
class Block:
    """A contiguous run of an output tensor's values.

    Copied from `reads` (averaged if there are several), oriented [out, in], narrowed to neurons `span` along
    `axis`, reordered, centred, perturbed, shifted by `offset`, scaled; or filled, if `reads` is empty.

    Attributes:
        shape: of the block; the blocks of a tensor follow each other in its flattened order.
        transposed: the source stores [in, out].
        order: for each index of the block along `axis`, the index in the source (within `span`).
        centred: axis along which the mean is subtracted.
        offset: added to copied values, and to the zeros of a filled block.
        fill: for a block that copies nothing: "zeros", "normal" (N(0, std)) or "rows" (supplied to the writer by name,
            as router centroids are).
        repeat: how often each row of a filled block is repeated (the experts of one group share a row).
        stream: name of the block's random stream.
    """

    shape: tuple[int, ...]
    reads: tuple[Read, ...] = ()
    axis: int = 0
    span: tuple[int, int] | None = None
    transposed: bool = False
    order: tuple[int, ...] | None = None
    centred: int | None = None
    offset: float = 0.0
    scale: float = 1.0
    perturb: Perturb | None = None
    fill: Literal["zeros", "normal", "rows"] = "zeros"
    std: float = 0.0
    repeat: int = 1
    stream: str = ""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class OutTensor:
    """One tensor of the output.

    Attributes:
        name: on disk.
        memory: name of the parameter it is part of, once loaded; `region` says which part (an index per leading
            axis, or a (start, stop) pair), () for all of it.
        dtype: torch's name.
        role: its purpose; active parameters count experts' tensors at K/E.
    """

    name: str
    memory: str
    region: Region
    shape: tuple[int, ...]
    dtype: str
    role: Role
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * (4 if self.dtype == "float32" else 2)


def kept_block(piece: Piece, reads: tuple[Read, ...]) -> Block:
    """The block of a tensor that is kept from the source: `reads` are the tensors that `piece.source` names."""
    if piece.filled:
        return Block(piece.shape, offset=piece.offset)
    return Block(
        piece.shape,
        reads,
        span=piece.rows,
        order=piece.order,
        centred=piece.centred,
        offset=piece.offset,
        scale=piece.scale,
    )
