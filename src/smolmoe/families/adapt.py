"""Linear algebra that makes the attention, norms and head of one class compute the same in another.

A conversion keeps every tensor outside the FFNs, except for these changes. Each is a pure function of the kept tensors,
described as `Piece`s of the source's, so nothing is read or computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Piece:
    """A tensor of the result: (source[rows][order] + offset) * scale, or filled with `offset`; or centred.

    Attributes:
        shape: of the result.
        source: the source's tensor, by its name in the class; for a filled tensor the one whose dtype it takes.
        filled: nothing is copied.
        rows: (start, stop) of the source's rows; None: all of them.
        order: for each row of the result, the row of the source (counted within `rows`); None: as they are.
        centred: axis along which the mean is subtracted first; None: no axis.
    """

    shape: tuple[int, ...]
    source: str
    filled: bool = False
    rows: tuple[int, int] | None = None
    order: tuple[int, ...] | None = None
    centred: int | None = None
    offset: float = 0.0
    scale: float = 1.0


Kept = dict[str, Piece]
Change = Callable[[Kept], Kept]


@dataclass(frozen=True)
class Adaptation:
    """What makes a source fit an MoE class.

    Attributes:
        changes: changes to the tensors outside the FFNs, in this order.
        config: settings in place of those that are copied.
        refusals: why this source's settings do not fit.
        notes: what the user should know.
        limits: what the claim says of differences that no tensor shows: where the result is not equal.
    """

    changes: Sequence[Change] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    refusals: Sequence[str] = ()
    notes: Sequence[str] = ()
    limits: Sequence[str] = ()


def kept(shapes: Mapping[str, tuple[int, ...]]) -> Kept:
    """Every tensor as it is."""
    return {name: Piece(shape, name) for name, shape in shapes.items()}


def changed(tensors: Kept, changes: Sequence[Change]) -> Kept:
    """The kept tensors after each of the changes, in order."""
    for change in changes:
        tensors = change(tensors)
    return tensors


def shifted(*ends: str, by: float = 1.0) -> Change:
    """Add `by` to the tensors whose names end so: RMSNorm that multiplies by 1 + w becomes one that multiplies by w."""
    return _each(ends, lambda piece: replace(piece, offset=piece.offset + by / piece.scale))


def scaled(*ends: str, by: float) -> Change:
    """Multiply the tensors whose names end so."""
    return _each(ends, lambda piece: replace(piece, scale=piece.scale * by))


def centred(*ends: str, axis: int) -> Change:
    """Subtract the mean along an axis of the tensors whose names end so.

    If everything that is added to the residual stream is centred over the stream's features, RMSNorm of the stream is
    its LayerNorm: the stream's mean, which LayerNorm subtracts, is 0.
    """
    return _each(ends, lambda piece: replace(piece, centred=axis))


def renamed(old: str, new: str) -> Change:
    """Replace a part of the names."""
    return lambda tensors: {name.replace(old, new): piece for name, piece in tensors.items()}


def dropped(*ends: str) -> Change:
    """Leave out the tensors whose names end so."""
    return lambda tensors: {name: piece for name, piece in tensors.items() if not name.endswith(ends)}


def split(end: str, parts: Mapping[str, int]) -> Change:
    """Tensors whose names end in `end`, stacks of several projections, become one tensor for each.

    Args:
        end: ending of the name, e.g. "qkv_proj.weight".
        parts: ending in its place -> number of rows, in the order of the stack.
    """

    def change(tensors: Kept) -> Kept:
        result: Kept = {}
        for name, piece in tensors.items():
            if not name.endswith(end):
                result[name] = piece
                continue
            start = 0
            for part, count in parts.items():
                rows = (start, start + count)
                result[name.removesuffix(end) + part] = replace(piece, shape=(count, *piece.shape[1:]), rows=rows)
                start += count
            assert start == piece.shape[0], (name, piece.shape, parts)
        return result

    return change


def reordered(*ends: str, head: Sequence[int]) -> Change:
    """Reorder the rows within each head; `head[i]` is the row of the source's head that becomes row i."""

    def one(piece: Piece) -> Piece:
        size = len(head)
        order = tuple(start + row for start in range(0, piece.shape[0], size) for row in head)
        return replace(piece, order=order)

    return _each(ends, one)


def added(anchor: str, name: str, value: float = 0.0, shape: tuple[int, ...] | None = None) -> Change:
    """For each tensor whose name ends in `anchor`, one more, filled with `value`, whose name ends in `name`.

    By default it has one value for each row of that tensor.
    """

    def change(tensors: Kept) -> Kept:
        result: Kept = {}
        for each, piece in tensors.items():
            result[each] = piece
            if each.endswith(anchor):
                size = shape or piece.shape[:1]
                result[each.removesuffix(anchor) + name] = Piece(size, piece.source, filled=True, offset=value)
        return result

    return change


def untied(tensors: Kept) -> Kept:
    """The input embedding written once more as the output head; the settings must say that they are not tied."""
    if "lm_head.weight" in tensors:
        return tensors
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}


def half_split(head_dim: int, rotary: int | None = None) -> tuple[int, ...]:
    """Order of a head's rows that turns interleaved rotary pairs (2i, 2i + 1) into pairs (i, i + r/2).

    Args:
        head_dim: rows of a head.
        rotary: r, how many of them rotate, the first ones; None: all.
    """
    count = head_dim if rotary is None else rotary
    return (*range(0, count, 2), *range(1, count, 2), *range(count, head_dim))


def interleaved(rotary: int, before: int = 0) -> tuple[int, ...]:
    """The inverse: order of a head's rows that turns pairs (i, i + r/2) into neighbours (2i, 2i + 1).

    Args:
        rotary: r, the last rows of the head.
        before: rows in front of them, which do not rotate.
    """
    return (*range(before), *(before + row // 2 + row % 2 * (rotary // 2) for row in range(rotary)))


def _each(ends: tuple[str, ...], change: Callable[[Piece], Piece]) -> Change:
    return lambda tensors: {name: change(piece) if name.endswith(ends) else piece for name, piece in tensors.items()}
