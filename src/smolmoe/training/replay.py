"""Gradient checkpointing that routes once: what a layer chose in its forward pass is what is recomputed.

A recomputed router score may differ from the first by rounding: kernels that add up in no fixed order, or something it
depends on that moved in between. Where two experts are close, the recomputation would then take other experts than the
loss was computed with, and its gradient would be of another function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_TOP_K: set[Callable[..., Any]] = {torch.topk, torch.Tensor.topk}
_BELOW: set[Callable[..., Any]] = {torch.lt, torch.Tensor.lt, torch.Tensor.__lt__}


class _Choices(TorchFunctionMode):
    """Remembers what `topk` chose, or chooses that again. Values are those at the chosen places either way."""

    def __init__(self, remembered: list[torch.Tensor], *, replay: bool):
        super().__init__()
        self._remembered = remembered
        self._replay = replay
        self._next = 0

    def __enter__(self) -> Any:
        self._next = 0  # a graph that is kept is recomputed once for every backward pass
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _TOP_K:
            return self._top_k(func, *args, **kwargs)
        if func in _BELOW and args[0].is_floating_point():  # how many of the K count: `top_p`
            return self._decide(lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def _top_k(self, func: Any, scores: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        indices = self._decide(lambda: func(scores.detach(), *args, **kwargs).indices)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        return torch.return_types.topk((scores.gather(dim, indices), indices))

    def _decide(self, decide: Callable[[], torch.Tensor]) -> torch.Tensor:
        if not self._replay:
            self._remembered.append(decide())
            return self._remembered[-1]
        self._next += 1
        return self._remembered[self._next - 1]


def remember_choices(model: torch.nn.Module) -> None:
    """Let the layers of a model whose gradient checkpointing is on recompute with the experts they chose first.

    Kept are the chosen indices, 8 bytes each, for as long as the layer's graph. Reentrant checkpointing cannot be told
    and is left alone.
    """
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if not isinstance(function, partial) or not module.__dict__.get("gradient_checkpointing", False):
            continue
        if function.keywords.get("use_reentrant", True) or "context_fn" in function.keywords:
            continue
        module._gradient_checkpointing_func = partial(function, context_fn=_contexts)  # type: ignore[assignment]


def _contexts() -> tuple[_Choices, _Choices]:
    """Of the forward pass and of its recomputation, for one call of a layer."""
    remembered: list[torch.Tensor] = []
    return _Choices(remembered, replay=False), _Choices(remembered, replay=True)
