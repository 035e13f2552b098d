"""Tensors that claim to be on a GPU and have no values: device and dtype mistakes show without one.

`FakeTensorMode` of torch computes device, dtype and shape of every result, and refuses operations over two devices, the
values of tensors (`.item()`, which would wait for a GPU), and kernels that CUDA would refuse. No gradients: torch's CPU
build cannot start a graph on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = "cuda"


_BY_OPERATOR = {
    torch.Tensor.contiguous: torch.ops.aten.contiguous,
    torch.Tensor.copy_: torch.ops.aten.copy_,
    torch.Tensor.__invert__: torch.ops.aten.bitwise_not,
}


@contextmanager
def fake_cuda(*, autocast: torch.dtype | None = None) -> Iterator[Products]:
    """Within, new tensors have no values, and those made with device="cuda" are on a GPU.

    Args:
        autocast: this dtype, as by `torch.autocast("cuda", dtype)`, which refuses to work without a GPU.
    """
    before = torch.is_autocast_enabled(CUDA), torch.get_autocast_dtype(CUDA)
    hopper = patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with hopper, FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad(), _Operators(), Products() as products:
        torch.set_autocast_enabled(CUDA, autocast is not None)
        torch.set_autocast_dtype(CUDA, autocast or before[1])
        try:
            yield products
        finally:
            torch.set_autocast_enabled(CUDA, before[0])
            torch.set_autocast_dtype(CUDA, before[1])


def put(model: Any, dtype: torch.dtype, device: str = CUDA) -> Any:
    """The same model with parameters of this dtype, and buffers, without values; call it in `fake_cuda`."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
                module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model.eval()


class Products(TorchDispatchMode):
    """Records the dtypes of matrix products.

    Attributes:
        found: (operator, dtype of its first operand).
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.name():
            self.found.add((func.name().split("::")[1], args[0].dtype))
        return func(*args, **(kwargs or {}))


class _Operators(TorchFunctionMode):
    """By operators what torch's CPU build stops in, because its Python binding looks for the device first."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            return _select(*args)
        if func is torch.Tensor.__setitem__:
            return _assign(*args)
        return _BY_OPERATOR.get(func, func)(*args, **(kwargs or {}))


def _select(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    view, tensors = _view(tensor, index)
    return torch.ops.aten.index.Tensor(view, tensors) if tensors else view


def _assign(tensor: torch.Tensor, index: Any, value: Any) -> None:
    view, tensors = _view(tensor, index)
    if tensors:
        value = (
            value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=view.dtype, device=view.device)
        )
        torch.ops.aten.index_put_(view, tensors, value)
    elif isinstance(value, torch.Tensor):
        torch.ops.aten.copy_(view, value)
    else:
        torch.ops.aten.fill_(view, value)


def _view(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The view that slices, numbers and None give, and the tensors that index its dimensions."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        at = next(place for place, part in enumerate(parts) if part is Ellipsis)
    else:
        at = len(parts)
        parts.append(Ellipsis)
    used = sum(part is not None and part is not Ellipsis for part in parts)
    parts[at : at + 1] = [slice(None)] * (tensor.ndim - used)
    tensors: list[torch.Tensor | None] = []
    view, dim = tensor, 0
    for part in parts:
        if part is None:
            view = torch.ops.aten.unsqueeze(view, dim)
        elif isinstance(part, slice):
            view = torch.ops.aten.slice.Tensor(view, dim, part.start, part.stop, part.step or 1)
        elif isinstance(part, torch.Tensor | list):
            tensors += [None] * (dim - len(tensors))
            given = part if isinstance(part, torch.Tensor) else torch.tensor(part, device=view.device)
            tensors.append(given)
        else:
            view = torch.ops.aten.select(view, dim, part)
            continue
        dim += 1
    return view, tensors
