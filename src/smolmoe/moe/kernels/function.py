"""A layer of experts on the CPU as one autograd function: sorted once, little kept for the backward pass.

Shapes: T tokens, K experts per token, R = T*K choices, M of them in a block; D hidden size, I expert width, P the width
of the activation's input (2*I if gated).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from smolmoe.moe.kernels.dispatch import Routes, Span, rows_of, sort
from smolmoe.moe.kernels.gate import Gate, SwiGlu
from smolmoe.moe.kernels.matmul import back, outer, project
from smolmoe.moe.kernels.memory import LARGEST_BLOCK, Buffers, empty, zeros
from smolmoe.moe.kernels.native import few_swiglu_experts

BLOCK_BYTES = 2**23  # of a block's pre-activations: they fit a cache, and few calls serve many small experts


class Stacks(NamedTuple):
    """The experts' weights, [E, out, in] or where transposed [E, in, out], and biases [E, out] or None."""

    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None


class Layer(NamedTuple):
    """What lies between the projections, how weights lie, and the number type of the products."""

    gate: Gate
    transposed: bool
    dtype: torch.dtype

    def matrices(self, stack: torch.Tensor, block: Sequence[Span]) -> Iterable[torch.Tensor]:
        """[out, in] of each expert of a block, in the number type of the products."""
        stack = stack.mT if self.transposed else stack
        # All views at once are cheaper than many one by one.
        views = stack.unbind() if 4 * len(block) > len(stack) else stack
        found = (views[expert] for expert, _, _ in block)
        return found if stack.dtype == self.dtype else (matrix.to(self.dtype) for matrix in found)

    def outputs(self, stack: torch.Tensor) -> int:
        return stack.shape[2 if self.transposed else 1]

    def block_rows(self, width: int) -> int:
        return max(1, BLOCK_BYTES // (width * self.dtype.itemsize))


def apply_experts(
    hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, stacks: Stacks, layer: Layer
) -> torch.Tensor:
    """[T, D], [T, K], [T, K] -> [T, D]: the chosen experts' outputs, weighted and added up, in the type of `hidden`.

    Gradients of `hidden`, `weights` and the stacks; those not needed are not computed. Once differentiable.
    """
    inputs = (hidden, weights, *stacks)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _Experts.apply(*inputs, index, layer)
    found = _few(hidden, index, weights, stacks, layer)
    if found is not None:
        return found
    with torch.no_grad():
        return _forward(hidden, sort(index), weights, stacks, layer, None, None)


def _few(
    hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, stacks: Stacks, layer: Layer
) -> torch.Tensor | None:
    """Like `_forward`, using the kernel for few tokens, where the overhead of calls matters as well as the weights."""
    biased = stacks.up_bias is not None or stacks.down_bias is not None
    if biased or layer.transposed or not isinstance(layer.gate, SwiGlu) or weights.dtype == torch.float64:
        return None
    return few_swiglu_experts(hidden, index, weights, stacks.up, stacks.down)


def _forward(
    hidden: torch.Tensor,
    routes: Routes,
    weights: torch.Tensor,
    stacks: Stacks,
    layer: Layer,
    pre_kept: torch.Tensor | None,
    out_kept: torch.Tensor | None,
) -> torch.Tensor:
    """`pre_kept` [R, P] and `out_kept` [R, D] take what the backward pass will need."""
    width, size = layer.outputs(stacks.up), hidden.shape[1]
    limit = layer.block_rows(width)
    buffers = Buffers(routes.largest(limit), layer.dtype)
    weighted = empty((len(routes.order), size), hidden.dtype)
    gates = weights.reshape(-1)[routes.order].unsqueeze(-1)
    for block in routes.blocks(limit):
        rows = slice(block[0][1], block[-1][2])
        count = rows.stop - rows.start
        x = hidden.index_select(0, routes.token[rows]).to(layer.dtype)
        pre = buffers.take("pre", count, width) if pre_kept is None else pre_kept[rows]
        _project_all(x, stacks.up, stacks.up_bias, block, layer, pre)
        inner = buffers.take("inner", count, width // layer.gate.ratio)
        layer.gate.forward(pre, inner)
        out = buffers.take("out", count, size) if out_kept is None else out_kept[rows]
        _project_all(inner, stacks.down, stacks.down_bias, block, layer, out)
        torch.mul(out, gates[rows], out=weighted[rows])
    return _add_up(weighted, routes.place)


def _project_all(
    x: torch.Tensor,
    stack: torch.Tensor,
    bias: torch.Tensor | None,
    block: Sequence[Span],
    layer: Layer,
    out: torch.Tensor,
) -> None:
    laid = stack.mT if layer.transposed else stack
    project(x, laid, layer.matrices(stack, block), block, out)
    if bias is not None:
        for (expert, _, _), result in zip(block, out.split(rows_of(block)), strict=True):
            result.add_(bias[expert])


def _add_up(rows: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """[R, D] -> [T, D]: the K rows of every token, added in at least fp32 and rounded once."""
    if place.shape[1] == 1 or not len(rows):
        return rows.index_select(0, place[:, 0])
    return F.embedding_bag(place, rows, mode="sum")


class _Experts(torch.autograd.Function):
    """Keeps the pre-activations, and the experts' outputs where the router learns; gathers and gates again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        up_bias: torch.Tensor | None,
        down_bias: torch.Tensor | None,
        index: torch.Tensor,
        layer: Layer,
    ) -> torch.Tensor:
        stacks = Stacks(up, down, up_bias, down_bias)
        routes = sort(index)
        count = len(routes.order)
        pre = empty((count, layer.outputs(up)), layer.dtype)
        out = empty((count, hidden.shape[1]), layer.dtype) if ctx.needs_input_grad[1] else None
        ctx.layer = layer
        # The routes too: with gradient checkpointing they are those of the second forward pass, as the rest is.
        ctx.save_for_backward(hidden, weights, *stacks, pre, out, *routes.tensors())
        return _forward(hidden, routes, weights, stacks, layer, pre, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weights, up, down, up_bias, down_bias, pre, out, *routes = ctx.saved_tensors
        call = _Call(hidden, weights, Stacks(up, down, up_bias, down_bias), pre, out, Routes.of(*routes), ctx.layer)
        with torch.autocast("cpu", enabled=False):
            return (*_Backward(call, ctx.needs_input_grad).run(grad), None, None)


class _Call(NamedTuple):
    """A forward pass, as kept."""

    hidden: torch.Tensor
    weights: torch.Tensor
    stacks: Stacks
    pre: torch.Tensor
    out: torch.Tensor | None
    routes: Routes
    layer: Layer


class _Backward:
    """The gradients of one call, block by block."""

    def __init__(self, call: _Call, needs: Sequence[bool]):
        self.call = call
        rows, size = len(call.pre), call.hidden.shape[1]
        self.limit = call.layer.block_rows(call.pre.shape[1])
        self.buffers = Buffers(call.routes.largest(self.limit), call.layer.dtype)
        self.grad_x = empty((rows, size), call.hidden.dtype) if needs[0] else None
        self.grad_gates = None
        if needs[1]:
            exact = torch.promote_types(call.weights.dtype, torch.float32)
            self.grad_gates = call.weights.new_empty(rows, dtype=exact)
        chosen = [expert for expert, _, _ in call.routes.spans]
        self.grad_up, self.grad_down, self.grad_up_bias, self.grad_down_bias = (
            _gradient(stack, chosen) if stack is not None and needed else None
            for stack, needed in zip(call.stacks, needs[2:6], strict=True)
        )

    def run(self, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weights and the stacks, from that of the result [T, D]."""
        call, routes, buffers = self.call, self.call.routes, self.buffers
        gates = call.weights.reshape(-1)[routes.order].unsqueeze(-1)
        for block in routes.blocks(self.limit):
            rows = slice(block[0][1], block[-1][2])
            grad_rows = grad.index_select(0, routes.token[rows])
            if call.out is not None and self.grad_gates is not None:
                product = buffers.take("product", len(grad_rows), grad.shape[1], self.grad_gates.dtype)
                torch.mul(grad_rows, call.out[rows], out=product)
                torch.sum(product, -1, out=self.grad_gates[rows])
            grad_out = buffers.take("grad_out", len(grad_rows), grad.shape[1])
            torch.mul(grad_rows, gates[rows], out=grad_out)
            self._block(block, rows, grad_out)
        grad_hidden = None if self.grad_x is None else _add_up(self.grad_x, routes.place)
        grad_weights = None if self.grad_gates is None else self.grad_gates[routes.place].to(call.weights.dtype)
        return grad_hidden, grad_weights, self.grad_up, self.grad_down, self.grad_up_bias, self.grad_down_bias

    def _block(self, block: Sequence[Span], rows: slice, grad_out: torch.Tensor) -> None:
        """Everything below the weighted sum, from the gradient [M, D] of the experts' outputs."""
        call, width, count = self.call, self.call.pre.shape[1], len(grad_out)
        below = self.grad_x is not None or self.grad_up is not None or self.grad_up_bias is not None
        _sum_all(grad_out, block, self.grad_down_bias)
        if not below and self.grad_down is None:
            return
        inner = self.buffers.take("inner", count, width // call.layer.gate.ratio)
        grad_inner = self.buffers.take("grad_inner", *inner.shape)
        grad_pre = self.buffers.take("grad_pre", count, width) if below else None
        if below:
            self._back_all(grad_out, call.stacks.down, block, grad_inner)
        call.layer.gate.backward(call.pre[rows], grad_inner, inner, grad_pre)
        self._outer_all(grad_out, inner, block, self.grad_down)
        if grad_pre is None:
            return
        _sum_all(grad_pre, block, self.grad_up_bias)
        if self.grad_up is not None:
            x = call.hidden.index_select(0, call.routes.token[rows]).to(call.layer.dtype)
            self._outer_all(grad_pre, x, block, self.grad_up)
        if self.grad_x is not None:
            self._back_all(grad_pre, call.stacks.up, block, self.grad_x[rows])

    def _back_all(self, grad: torch.Tensor, stack: torch.Tensor, block: Sequence[Span], out: torch.Tensor) -> None:
        sizes, weights = rows_of(block), self.call.layer.matrices(stack, block)
        for one, weight, result in zip(grad.split(sizes), weights, out.split(sizes), strict=True):
            back(one, weight, result)

    def _outer_all(
        self, grad: torch.Tensor, x: torch.Tensor, block: Sequence[Span], gradient: torch.Tensor | None
    ) -> None:
        if gradient is None:
            return
        sizes = rows_of(block)
        left, right = (x, grad) if self.call.layer.transposed else (grad, x)
        for (expert, _, _), one, other in zip(block, left.split(sizes), right.split(sizes), strict=True):
            outer(one, other, gradient[expert])


def _gradient(stack: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """Zero for the experts that no token chose, and arbitrary for the others."""
    # Fresh pages cost as much per byte as filling; memory outside the heap has fresh pages either way.
    if len(chosen) * (2 if stack.nbytes > LARGEST_BLOCK else 4) <= len(stack):
        return zeros(stack.shape, stack.dtype)
    gradient = empty(stack.shape, stack.dtype)
    start = 0
    for expert in (*sorted(chosen), len(stack)):
        if start < expert:
            gradient[start:expert].zero_()
        start = expert + 1
    return gradient


def _sum_all(grad: torch.Tensor, block: Sequence[Span], gradient: torch.Tensor | None) -> None:
    """The gradients [out] of these experts' biases."""
    if gradient is None:
        return
    for (expert, _, _), one in zip(block, grad.split(rows_of(block)), strict=True):
        gradient[expert].copy_(one.sum(0, dtype=gradient.dtype))
