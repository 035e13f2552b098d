"""The cross-entropy of a linear layer's outputs over a large vocabulary, without those outputs in memory.

Logits [N, V] of a language model are the largest tensors of its training step, and are needed for one number. Here a
few rows of them exist at a time. Their gradient is known as soon as they are, so it goes into the gradients of the
inputs and of the weight at once, and nothing is computed twice (as in arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import log_softmax

from smolmoe.moe.kernels.memory import empty

IGNORED = -100  # a label that is ignored
AT_ONCE = 2**25  # logits in memory: 64 MB in bf16
IN_CACHE = 2**17  # logits whose fp32 copy is worked on: half a megabyte


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    ignored: int = IGNORED,
) -> torch.Tensor:
    """The sum over rows of the cross-entropy, in nats, of softmax(hidden weight^T + bias): a scalar in fp32.

    Products are in autocast's number type where it is on, else the weight's; the loss itself is in fp32, as is the sum
    of the weight's gradient. On CUDA it is Liger's kernel where `liger_kernel` is installed. Once differentiable.

    Args:
        hidden: [N, D].
        weight: [V, D].
        labels: [N]; rows with the label `ignored` are not computed.
        bias: [V].
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        if hidden.is_cuda and (liger := _liger(ignored)) is not None:
            total: torch.Tensor = liger(
                *(weight.to(dtype), hidden.to(dtype), labels), None if bias is None else bias.to(dtype)
            )
            return total.float()
        counted = (labels != ignored).nonzero().flatten()
        if len(counted) < len(labels):
            hidden, labels = hidden.index_select(0, counted), labels.index_select(0, counted)
        learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
        if not learns:
            return _run(hidden, weight, bias, labels, dtype, (False, False, False))[0]
        found: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, dtype)
        return found


class _LinearCrossEntropy(torch.autograd.Function):
    """Its gradients are made in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        total, *gradients = _run(hidden, weight, bias, labels, dtype, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = (
            None if found is None else torch.mul(found, grad, out=_empty(found.shape, dtype, found.device))
            for found, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None)


def _run(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    dtype: torch.dtype,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The loss, and the gradients that are needed of hidden, weight and bias."""
    size, matrix = len(weight), weight.to(dtype)
    count = max(1, min(len(hidden), AT_ONCE // size))
    memory = _empty((count, size), dtype, weight.device)
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    grad_hidden = torch.empty_like(hidden) if needs[0] else None
    grad_weight = _WeightGradient(weight, dtype) if needs[1] else None
    grad_bias = weight.new_zeros(size, dtype=torch.float32) if bias is not None and needs[2] else None
    for rows in _slices(len(hidden), count):
        x = hidden[rows].to(dtype)
        logits = torch.mm(x, matrix.t(), out=memory[: len(x)])
        if bias is not None:
            logits.add_(bias.to(dtype))
        losses[rows] = _losses(logits, labels[rows], any(needs))
        if grad_hidden is not None:
            grad_hidden[rows] = torch.mm(logits, matrix)
        if grad_weight is not None:
            grad_weight.add(logits, x)
        if grad_bias is not None:
            grad_bias += logits.sum(0, dtype=torch.float32)
    return losses.sum(), grad_hidden, None if grad_weight is None else grad_weight.total, grad_bias


def _losses(logits: torch.Tensor, labels: torch.Tensor, with_gradient: bool) -> torch.Tensor:
    """[n] in fp32; with a gradient, it is left in the place of the logits [n, V]."""
    # Pieces that stay in a cache, but where kernels are launched.
    count = max(1, IN_CACHE // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    for rows in _slices(len(logits), count):
        label = labels[rows].unsqueeze(-1)
        spoken = log_softmax(logits[rows], -1, dtype=torch.float32)
        losses[rows] = -spoken.gather(-1, label).squeeze(-1)
        if with_gradient:
            logits[rows] = spoken.exp_().scatter_add_(-1, label, torch.full_like(label, -1, dtype=torch.float32))
    return losses


class _WeightGradient:
    """Of a weight [V, D], in fp32 at least: the sum over parts of the rows."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype):
        exact = torch.promote_types(weight.dtype, torch.float32)
        self.total = _empty(weight.shape, exact, weight.device).zero_()
        self._part = None if dtype == exact else _empty(weight.shape, dtype, weight.device)

    def add(self, logits: torch.Tensor, x: torch.Tensor) -> None:
        if self._part is None:
            self.total.addmm_(logits.t(), x)
        else:
            self.total.add_(torch.mm(logits.t(), x, out=self._part))


@cache
def _liger(ignored: int) -> Any:
    """Liger's function of weight, hidden, labels and bias; None where it is not installed."""
    try:
        liger = import_module("liger_kernel.transformers")
    except ImportError:
        return None
    return liger.LigerFusedLinearCrossEntropyLoss(ignore_index=ignored, reduction="sum")


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return empty(shape, dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)


def _slices(length: int, count: int) -> Iterator[slice]:
    return (slice(first, first + count) for first in range(0, length, count))
