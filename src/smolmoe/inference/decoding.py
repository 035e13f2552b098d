"""Faster `generate` of transformers on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from smolmoe.moe.kernels.native import FEW, few_linear

FEW_ROWS = 2  # in bf16; for more rows oneDNN is faster than torch's own products, although it packs the weights


@contextmanager
def fast_decoding(model: Any) -> Iterator[None]:
    """Within, matrix products of a few tokens on the CPU take only the time of reading the weights once.

    The libraries below torch write a packed copy of the weight for every product, which takes longer than a product of
    few rows. Linear layers of fp32 and bf16 models use the kernel of our experts, up to the number of rows for which it
    is faster. Other layers (the transposed weights of GPT-2, all layers without a C compiler) use torch's own products
    in calls with one or two tokens of a bf16 model.

    Calls that need gradients, are compiled or run under autocast are not changed. Results differ by rounding.
    """
    with _few_linear_rows(model), _torchs_own_products(model):
        yield


@contextmanager
def _few_linear_rows(model: Any) -> Iterator[None]:
    taken = [module for module in model.modules() if _is_plain(module)]
    for module in taken:
        module.forward = partial(_linear, module)
    try:
        yield
    finally:
        for module in taken:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    """A linear layer of torch without a replaced forward, as after offloading."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return type(module.weight) is nn.Parameter and module.weight.is_cpu and module.weight.dtype in FEW


def _linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    weight, bias = module._parameters["weight"], module._parameters["bias"]  # attributes take a microsecond each
    assert weight is not None  # see `_is_plain`
    out = few_linear(x, weight) if _is_usual(x) else None
    if out is None:
        return F.linear(x, weight, bias)
    return out if bias is None else out.add_(bias)


def _is_usual(x: torch.Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return type(x) is torch.Tensor


@contextmanager
def _torchs_own_products(model: Any) -> Iterator[None]:
    """Within, calls of the model with one or two tokens in bf16 on the CPU do not use oneDNN."""
    before: list[bool] = []  # the previous settings, to restore them

    def switch_off(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _has_few_rows(model, args, kwargs):
            before.append(bool(torch.backends.mkldnn.enabled))
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]

    def switch_back(*_: Any) -> None:
        if before:
            torch.backends.mkldnn.enabled = before.pop()  # type: ignore[assignment]

    hooks = [
        model.register_forward_pre_hook(switch_off, with_kwargs=True),
        model.register_forward_hook(switch_back, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has_few_rows(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    ids = next((value for value in given if isinstance(value, torch.Tensor)), None)
    is_bf16 = getattr(model, "dtype", None) == torch.bfloat16 and model.device.type == "cpu"
    return is_bf16 and ids is not None and ids.shape[0] * ids.shape[1] <= FEW_ROWS
