"""Our implementation of the experts of transformers' MoEs: `experts_implementation="smolmoe"`.

On the CPU it is the autograd function of `experts_function`. Where that cannot be, and on other devices, it is the
stock implementation that suits the device and the shape, in autocast's number type.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe as stock

from smolmoe.errors import RequestError
from smolmoe.moe.kernels.function import Layer, Stacks, apply_experts
from smolmoe.moe.kernels.gate import Gate, Recomputed, SwiGlu
from smolmoe.moe.routing import find_routers

logger = logging.getLogger(__name__)

NAME = "smolmoe"
FEW_CHOICES = 16  # on a GPU: up to here copying the chosen weights reportedly costs less than a grouped product
ALIGNMENT = 16  # bytes: grouped products take only rows whose length is a multiple of it
FASTEST_ON = ("cpu", "cuda")  # devices on which ours is the default
_WEIGHTS = {"gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias"}
_PLAIN = (torch.Tensor, nn.Parameter, type(None))
_SWIGLU = SwiGlu()


def register_experts() -> None:
    """Register `experts_implementation="smolmoe"` with transformers."""
    stock.ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def set_experts(
    model: Any, implementation: str | None = None, *, device: str | None = None, field: str = "experts"
) -> str | None:
    """Let a model's experts run by this implementation, by default ours; returns the one they run by.

    Models without experts, and those whose class does not let it be chosen, stay as they are, and None is returned.

    Args:
        implementation: ours, or one that transformers knows; None is ours on the CPU and on CUDA, elsewhere the model's
            own.
        device: that the model will run on, by default where it is.
        field: what a refusal calls the choice.

    Raises:
        RequestError: there is no such implementation, or the requested one is not available.
    """
    register_experts()
    if not find_routers(model) or not model._can_set_experts_implementation():
        if implementation is None:
            return None
        raise RequestError(
            "the experts implementation of this model cannot be chosen.",
            field=field,
            value=implementation,
            fix="Leave it out.",
        )
    if implementation is None and (device or model.device.type).partition(":")[0] in FASTEST_ON:
        implementation = NAME
    if implementation is not None:
        try:
            model.set_experts_implementation(implementation)
        except (ValueError, ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise RequestError(f"it cannot be used: {reason}.", field=field, value=implementation) from error
    found: str | None = model.config.get_text_config()._experts_implementation
    return found


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """[T, D], [T, K], [T, K] -> [T, D], of a module decorated with `use_experts_implementation`.

    Ours on the CPU: gated or not, any activation without parameters, biases, transposed weights, autocast. Stock
    `grouped_mm` there while a graph is compiled or exported, with expert parallelism, a norm after each expert,
    parameters besides the weights, or weights that are no plain tensors (quantised, sharded, fake).
    """
    if hidden_states.device.type == "cpu" and _is_usual(self):
        stacks = _stacks(self)
        if all([type(tensor) in _PLAIN for tensor in (hidden_states, *stacks)]):  # noqa: C419 - faster for so few
            layer = Layer(_gate_of(self), self.is_transposed, _product_type(stacks.up, "cpu"))
            return apply_experts(hidden_states, top_k_index, top_k_weights, stacks, layer)
    return _by_stock(self, hidden_states, top_k_index, top_k_weights)


def _is_usual(experts: Any) -> bool:
    if torch.compiler.is_compiling() or getattr(experts, "_is_expert_parallel", False):
        return False
    if getattr(experts, "has_post_expert_norm", False):
        return False
    if not experts._parameters.keys() <= _WEIGHTS:
        return False
    # Nearly always one activation without anything in it, which need not be searched for parameters at every call.
    children = [child for name, child in experts._modules.items() if name != "parametrizations" and child is not None]
    return not any(child._parameters or (child._modules and [*child.parameters()]) for child in children)


def _stacks(experts: Any) -> Stacks:
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    biases = (getattr(experts, f"{up}_bias"), experts.down_proj_bias) if experts.has_bias else (None, None)
    return Stacks(getattr(experts, up), experts.down_proj, *biases)


def _gate_of(experts: Any) -> Gate:
    if not experts.has_gate:
        return Recomputed(experts.act_fn, 1)
    if _gates_by_default(experts) and type(experts.act_fn) in (nn.SiLU, SiLUActivation):
        return _SWIGLU
    return Recomputed(experts._apply_gate, 2)


def _gates_by_default(experts: Any) -> bool:
    return type(experts)._apply_gate is stock._default_apply_gate


def _product_type(weight: torch.Tensor, device: str) -> torch.dtype:
    """That of the weights, unless autocast lowers it."""
    if torch.is_autocast_enabled(device) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _by_stock(experts: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The stock implementation for this device and shape."""
    name = stock_choice(experts, hidden, index)
    if name == "batched_mm":
        return stock.batched_mm_experts_forward(experts, hidden, index, weights)
    if name == "eager":
        return type(experts).forward.__wrapped__(experts, hidden, index, weights)
    lowered = _Lowered.of(experts, hidden.device.type)
    if name == "grouped_mm":
        return stock.grouped_mm_experts_forward(lowered, hidden, index, weights)
    x = hidden.to(lowered.down_proj.dtype)
    return stock.sonicmoe_experts_forward(lowered, x, index, weights).to(hidden.dtype)


def stock_choice(experts: Any, hidden: torch.Tensor, index: torch.Tensor) -> str:
    """The name of the stock implementation that runs where ours does not: batched_mm, sonicmoe, grouped_mm, eager.

    Args:
        hidden, index: [T, D], [T, K].
    """
    if hidden.is_cuda and index.numel() <= FEW_CHOICES:
        return "batched_mm"
    product = _product_type(experts.down_proj, hidden.device.type)
    if hidden.is_cuda and product == torch.bfloat16 and _suits_sonic(experts):
        return "sonicmoe"
    if torch.compiler.is_compiling() and product != torch.bfloat16:
        return "grouped_mm"  # which is a loop of products then
    return "grouped_mm" if is_aligned(experts.down_proj, product) else "eager"


def is_aligned(down: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product takes experts of these sizes [E, D, I] in this dtype."""
    return all(width * dtype.itemsize % ALIGNMENT == 0 for width in down.shape[1:])


class _Lowered:
    """A module of experts with its weights in autocast's number type.

    Autocast leaves grouped products alone: they would compute in the weights' own type, fp32 in training. Like
    autocast's copies of other weights, these live until the backward pass.
    """

    def __init__(self, experts: Any, dtype: torch.dtype):
        self._experts = experts
        for name in _WEIGHTS:
            weight = getattr(experts, name, None)
            if isinstance(weight, torch.Tensor) and weight.is_floating_point():
                setattr(self, name, weight.to(dtype))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experts, name)

    @classmethod
    def of(cls, experts: Any, device: str) -> Any:
        """The module itself if nothing is lowered."""
        dtype = _product_type(experts.down_proj, device)
        return experts if dtype == experts.down_proj.dtype else cls(experts, dtype)


def _suits_sonic(experts: Any) -> bool:
    """Whether the sonic-moe kernels run on this GPU, and compute what these experts do."""
    silu = experts.has_gate and _gates_by_default(experts) and type(experts.act_fn) in (nn.SiLU, SiLUActivation)
    norm = getattr(experts, "has_post_expert_norm", False)
    silu = silu and getattr(experts.config, "hidden_act", "silu") == "silu"
    return silu and not norm and _sonic_runs()


@torch.compiler.assume_constant_result
def _sonic_runs() -> bool:
    return _load_sonic()


@cache  # the check reads the versions of packages, which takes longer than a layer
def _load_sonic() -> bool:
    """Whether the kernels load: they come from the hub when first used."""
    from transformers.integrations.sonicmoe import is_sonicmoe_loadable, load_sonicmoe_kernel

    if not is_sonicmoe_loadable():
        return False
    try:
        load_sonicmoe_kernel()
    except Exception as error:  # of whatever type: it is fetched, compiled and imported
        logger.warning("The sonic-moe kernels cannot be loaded, grouped_mm is used: %s", error)
        return False
    return True
