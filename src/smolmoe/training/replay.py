"""Gradient checkpointing that routes once: a layer is recomputed with the experts of its forward pass.

A recomputed router score may differ by rounding: kernels add up in no fixed order, or something it depends on changed
in between. If two experts are close, the recomputation could choose other experts than the forward pass, and the
gradient would be that of another function.
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
    """Records the indices that `topk` chose, or returns them again. Values are those at these indices either way."""

    def __init__(self, remembered: list[torch.Tensor], *, replay: bool):
        super().__init__()
        self._remembered = remembered
        self._replay = replay
        self._next = 0

    def __enter__(self) -> Any:
        self._next = 0  # a retained graph is recomputed in every backward pass
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
    """Let the checkpointed layers of a model recompute with the experts of their forward pass.

    The chosen indices, 8 bytes each, are kept as long as the layer's graph. Reentrant checkpointing has no hook for
    this and is unchanged.
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
