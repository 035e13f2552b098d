"""The matrix products of an expert on the CPU, by how many tokens it got.

The libraries below torch pack a weight anew for every product. For many tokens that is lost in the work; for one token
it is most of it, so few tokens take forms of the same product that read the weight as it lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

# Up to so many tokens MKL is faster with the weight as the left operand, the last where its rows are short.
FEW, FEW_OF_SHORT_ROWS, SHORT_ROW = 2, 6, 768


def project(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """x [M, in] @ weight [out, in]^T, into `out` [M, out]; all of one number type."""
    rows = x.shape[0]
    if not weight.is_contiguous():
        torch.mm(x, weight.t(), out=out)
    elif x.dtype == torch.float32 and rows <= (FEW_OF_SHORT_ROWS if x.shape[1] <= SHORT_ROW else FEW):
        # Two columns at least: for one, MKL has a slower kernel.
        doubled = x if rows > 1 else x.expand(2, -1).contiguous()
        out.copy_(torch.mm(weight, doubled.t())[:, :rows].t())
    elif x.dtype == torch.bfloat16 and rows == 1:
        with _streaming(x.dtype):
            torch.mm(weight, x.t(), out=out.view(-1, 1))
    else:
        torch.mm(x, weight.t(), out=out)


def project_rows(rows: torch.Tensor, weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """Each of rows [K, in] @ its own weight [out, in]^T: [K, out], in as few calls as there are."""
    doubled = 2 if rows.dtype == torch.float32 else 1
    columns = rows.unsqueeze(1).expand(-1, doubled, -1).contiguous().mT.unbind()
    with _streaming(rows.dtype):
        products = [torch.mm(weight, column) for weight, column in zip(weights, columns, strict=True)]
    return torch.cat(products).view(len(rows), -1, doubled)[..., 0]


@contextmanager
def _streaming(dtype: torch.dtype) -> Iterator[None]:
    """Within, bf16 goes through torch's own kernel, which for one row reads a weight as it lies; oneDNN packs it."""
    if dtype != torch.bfloat16 or not torch._C._get_mkldnn_enabled():
        yield
        return
    # Whoever finds it off leaves it alone, so threads that meet here end with it on.
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


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
