"""What lies between an expert's two projections: forward into a given buffer, backward by recomputation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from smolmoe.moe.kernels.native import swiglu, swiglu_backward


class Gate(Protocol):
    """An activation that keeps only its input for the backward pass."""

    @property
    def ratio(self) -> int:
        """Number of input values per output value."""

    def forward(self, pre: torch.Tensor, out: torch.Tensor) -> None:
        """[M, ratio*I] -> [M, I], into `out`."""

    def backward(self, pre: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, grad_pre: torch.Tensor | None) -> None:
        """The output [M, I] once more, into `out`, and where asked the gradient of `pre`; `grad` [M, I] is used up."""


class SwiGlu:
    """silu(gate) * up of [gate, up] (arXiv 2002.05202)."""

    ratio = 2

    def forward(self, pre: torch.Tensor, out: torch.Tensor) -> None:
        if swiglu(pre, out):
            return
        gate, up = pre.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=out)
        out.mul_(up)

    def backward(self, pre: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, grad_pre: torch.Tensor | None) -> None:
        if grad_pre is None:
            return self.forward(pre, out)
        if swiglu_backward(pre, grad, out, grad_pre):
            return None
        gate, up = pre.chunk(2, dim=-1)
        grad_gate, grad_up = grad_pre.chunk(2, dim=-1)
        torch.ops.aten.silu.out(gate, out=out)
        torch.mul(grad, out, out=grad_up)
        grad.mul_(up)
        torch.ops.aten.silu_backward.grad_input(grad, gate, grad_input=grad_gate)
        out.mul_(up)
        return None


class Recomputed:
    """Any function without parameters that works row by row, its gradient by autograd."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], ratio: int):
        self._function = function
        self.ratio = ratio

    def forward(self, pre: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(self._function(pre))

    def backward(self, pre: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, grad_pre: torch.Tensor | None) -> None:
        if grad_pre is None:
            return self.forward(pre, out)
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            # The function may be a module with hooks for its input's gradient (torch's FLOP counter sets such): within
            # `autograd.grad` those run for what was computed, and raise for a leaf.
            result = self._function(leaf.view_as(leaf))
        out.copy_(result.detach())
        grad_pre.copy_(torch.autograd.grad(result, leaf, grad.to(result.dtype))[0])
        return None
