"""What makes transformers' `generate` fast on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from smolmoe.errors import RequestError
from smolmoe.moe.experts import NAME, register_experts
from smolmoe.moe.routing import find_routers

FEW_ROWS = 2  # of bf16: for more, oneDNN is faster, though it packs a weight anew for every product


def set_experts(model: Any, implementation: str | None = None) -> str | None:
    """Let a model's experts run by this implementation, by default ours on the CPU; returns the one they run by.

    Models without experts, and those whose class does not let it be chosen, stay as they are, and None is returned.

    Raises:
        RequestError: there is no such implementation, or it was asked for and cannot be had.
    """
    register_experts()
    if not find_routers(model) or not model._can_set_experts_implementation():
        if implementation is None:
            return None
        raise RequestError(
            "the model has no experts whose implementation can be chosen.",
            field="experts",
            value=implementation,
            fix="Leave it out.",
        )
    if implementation is None and model.device.type == "cpu":
        implementation = NAME
    if implementation is not None:
        try:
            model.set_experts_implementation(implementation)
        except (ValueError, ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RequestError(f"it cannot be used: {reason}.", field="experts", value=implementation) from error
    return model.config.get_text_config()._experts_implementation


@contextmanager
def fast_decoding(model: Any) -> Iterator[None]:
    """Within, a call of the model with one or two tokens in bf16 on the CPU takes torch's own products.

    oneDNN writes a packed copy of every weight for every product, which for so few rows takes longer than the product.
    """
    hooks = [
        model.register_forward_pre_hook(_before, with_kwargs=True),
        model.register_forward_hook(_after, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = [*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    ids = next((value for value in given if isinstance(value, torch.Tensor)), None)
    is_bf16 = model.dtype == torch.bfloat16 and model.device.type == "cpu"
    if is_bf16 and ids is not None and ids.shape[0] * ids.shape[1] <= FEW_ROWS:
        # What was off stays off afterwards, so that nobody else's setting is lost.
        model._mkldnn_before = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)


def _after(model: Any, *_: Any) -> None:
    before = model.__dict__.pop("_mkldnn_before", None)
    if before is not None:
        torch._C._set_mkldnn_enabled(before)
