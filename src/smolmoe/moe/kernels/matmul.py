"""The matrix products of experts on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from smolmoe.moe.kernels.dispatch import Span, rows_of
from smolmoe.moe.kernels.native import project_few


def project(
    x: torch.Tensor, stack: torch.Tensor, weights: Iterable[torch.Tensor], spans: Sequence[Span], out: torch.Tensor
) -> None:
    """Rows of x [M, in] @ their expert's weight [out, in]^T, into `out` [M, out].

    Args:
        stack: [E, out, in], which the kernel for few tokens reads.
        weights: the matrix of each span in the number type of `x`, which is used otherwise.
        spans: experts and their rows, counted from the first span's.
    """
    if project_few(x, stack, spans, out):
        return
    sizes = rows_of(spans)
    for one, weight, result in zip(x.split(sizes), weights, out.split(sizes), strict=True):
        torch.mm(one, weight.t(), out=result)


def back(grad: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """grad [M, out] @ weight [out, in], into `out` [M, in] of any number type."""
    _into(grad, weight, out)


def outer(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    """left [M, a]^T @ right [M, b], into `out` [a, b] of any number type."""
    _into(left.t(), right, out)


def _into(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right))
