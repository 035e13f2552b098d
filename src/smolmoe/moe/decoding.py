"""What makes transformers' `generate` fast on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

FEW_ROWS = 2  # of bf16: for more, oneDNN is faster, though it packs a weight anew for every product


@contextmanager
def fast_decoding(model: Any) -> Iterator[None]:
    """Within, a call of the model with one or two tokens in bf16 on the CPU takes torch's own products.

    oneDNN writes a packed copy of every weight for every product, which for so few rows takes longer than the product.
    """
    before: list[bool] = []  # what was off stays off afterwards, so that nobody else's setting is lost

    def switch_off(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _has_few_rows(model, args, kwargs):
            before.append(torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)

    def switch_back(*_: Any) -> None:
        if before:
            torch._C._set_mkldnn_enabled(before.pop())

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
    is_bf16 = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    return is_bf16 and ids is not None and ids.shape[0] * ids.shape[1] <= FEW_ROWS
