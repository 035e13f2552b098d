"""Several processes: their ranks, how they wait for each other, and a model sharded over them (FSDP2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smolmoe.core.files import growing
from smolmoe.errors import RequestError, SmolmoeError, TrainingError

if TYPE_CHECKING:
    from smolmoe.recipe import TrainRecipe

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
# Maximum wait for the process that tokenises or downloads; training has a much shorter timeout.
PATIENCE = timedelta(days=2)
# Elementwise optimisers. Adafactor, for example, mixes complete tensors with sharded ones and fails.
SHARDABLE = ("adamw_torch", "adamw_torch_fused", "sgd")


def world_size() -> int:
    """Number of processes, from `torchrun` or `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process; 0 writes and prints."""
    return int(os.environ.get("RANK", "0"))


def join(recipe: TrainRecipe) -> None:
    """Meet the other processes, if there are any: over gloo on a CPU, over NCCL on GPUs."""
    if world_size() == 1:
        return
    from accelerate import PartialState

    from smolmoe.core.devices import kind, pick_device

    device = pick_device(recipe.device)
    if ":" in device:
        raise RequestError(
            "several processes use one GPU each.", field="device", value=device, fix=f"Use {kind(device)}."
        )
    timeout = timedelta(seconds=float(recipe.trainer.get("ddp_timeout", 1800)))
    backend = recipe.trainer.get("ddp_backend")
    PartialState(cpu=device == "cpu", backend=backend, timeout=timeout)
    _meeting()


def on_main(work: Callable[[], Result]) -> Result:
    """Do `work` on rank 0 only; all ranks return its result, or raise its error."""
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    told: list[Any] = [_outcome(work) if rank() == 0 else None]
    dist.broadcast_object_list(told, src=0, group=_meeting())
    result, error = told[0]
    if error is not None:
        raise error
    return result


def in_turn(work: Callable[[], Result]) -> Result:
    """Do `work` on rank 0, then on one process of every machine, then on the others, which find its files cached.

    An error on one rank is raised on all.
    """
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    own = 0 if rank() == 0 else 1 if os.environ.get("LOCAL_RANK", "0") == "0" else 2
    result: Any = None
    for turn in range(3):
        error = None
        if turn == own:
            result, error = _outcome(work)
        errors: list[Any] = [None] * world_size()
        dist.all_gather_object(errors, error, group=_meeting())
        for found in errors:
            if found is not None:
                raise found
    return result


@contextmanager
def held_by_main(folder: Path) -> Iterator[None]:
    """Within, rank 0 locks the folder for all ranks, as `growing` does."""
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(growing(folder)))
        yield


@contextmanager
def only_main_speaks() -> Iterator[None]:
    """Inside the context, ranks other than 0 print nothing. Tracebacks of escaping exceptions are still shown."""
    if rank() == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _outcome(work: Callable[[], Any]) -> tuple[Any, SmolmoeError | None]:
    """The result of `work`, or the error that all processes raise: otherwise the others would wait forever."""
    try:
        return work(), None
    except SmolmoeError as error:
        return None, error
    except Exception as error:
        if world_size() == 1:
            raise
        logger.exception("A process failed.")
        return None, TrainingError(f"{type(error).__name__}: {error}")


@cache
def _meeting() -> Any:
    """A process group for objects on the CPU, with a long timeout."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=PATIENCE)


# -- sharded models ----------------------------------------------------------------------------------------------------


def build_once(build: Callable[[], Any]) -> Any:
    """The model that `build` gives on rank 0; on the others the same class without weights (on meta).

    `shard` sends the weights, so that a machine has one complete model in memory and not one per GPU.
    """
    if world_size() == 1:
        return build()
    import torch
    from accelerate import init_empty_weights

    from smolmoe.moe import register
    from smolmoe.moe.loading import causal_lm_class

    built: list[Any] = []

    def config() -> Any:
        built.append(build())
        return built[0].config

    found = on_main(config)
    if built:
        return built[0]
    register()  # the configuration may name our experts
    with init_empty_weights(include_buffers=False):
        model = causal_lm_class(found)._from_config(found, dtype=torch.float32)
    model.tie_weights()  # the context separates tied parameters
    return model


def check_optimizer(name: str) -> None:
    """Raises RequestError for an optimiser that is not known to work on sharded parameters."""
    if name not in SHARDABLE:
        raise RequestError(
            "is not known to work on sharded parameters.",
            field="trainer.optim",
            value=name,
            fix=f"Use {', '.join(SHARDABLE)}, or parallel: ddp.",
        )


def shard(model: Any, device: str, *, bf16: bool) -> None:
    """Shard a model's parameters over all processes, in place: FSDP2, one unit per decoder layer, one for the rest.

    Rank 0 has the weights in memory; the others may have none (`build_once`). References to modules and their hooks
    stay valid, references to parameters do not: make the optimiser afterwards.

    Args:
        bf16: gather and compute in bf16, reduce gradients in fp32; stored and trained weights are fp32 either way.
            Autocast alone would keep a bf16 copy of every layer until the end of the forward pass.

    Raises:
        TrainingError: a parameter was not sharded.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from smolmoe.moe.structure import find_layers

    mesh = init_device_mesh(device, (world_size(),))
    lower = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = lower if bf16 else MixedPrecisionPolicy()
    _, layers = find_layers(model)
    for module in (*layers, model):
        _receive(module, mesh.device_type)
        fully_shard(module, mesh=mesh, mp_policy=policy)
    _check_sharded(model)


def _receive(module: Any, device: str) -> None:
    """Send rank 0's weights and buffers to all ranks, except for sharded ones."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.tensor import DTensor

    place = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    made: dict[int, nn.Parameter] = {}  # a tied parameter stays one
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if isinstance(parameter, DTensor):
            continue
        if id(parameter) not in made:
            data = torch.empty_like(parameter, device=place) if parameter.is_meta else parameter.detach().to(place)
            dist.broadcast(data, src=0)
            made[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
        path, _, key = name.rpartition(".")
        setattr(module.get_submodule(path), key, made[id(parameter)])
    for name, buffer in list(module.named_buffers()):
        data = buffer.to(place)
        dist.broadcast(data, src=0)
        path, _, key = name.rpartition(".")
        setattr(module.get_submodule(path), key, data)


def is_sharded(model: Any) -> bool:
    """Whether some of its parameters are sharded."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _check_sharded(model: Any) -> None:
    """Raise TrainingError for a parameter that every process has as a full copy."""
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            raise TrainingError(
                f"{name} is not sharded across processes.", field="parallel", value="fsdp", fix="Use parallel: ddp."
            )


def whole_state(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dict (of a model, or nested as an optimiser's) with complete tensors on the CPU of rank 0, else empty.

    Every rank must call it. Tensors are gathered one by one, so that a GPU never has two of them. A parameter with
    several names (`state_dict(keep_vars=True)`) is gathered once, and stays shared.
    """
    from torch.distributed.tensor import DTensor

    gathered: dict[int, Any] = {}

    def gather(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: gather(entry) for key, entry in value.items()}
        if not isinstance(value, DTensor):
            return value
        if id(value) not in gathered:
            full = DTensor.full_tensor(value.detach())  # type: ignore[arg-type]
            gathered[id(value)] = full.cpu() if rank() == 0 else full.new_empty(0)
        return gathered[id(value)]

    found: dict[Any, Any] = gather(state)
    return found


def like_parameter(tensor: Any, parameter: Any) -> Any:
    """A complete tensor of a parameter's shape, sharded like the parameter; any other tensor unchanged."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape or tensor.ndim == 0:
        return tensor
    local = tensor.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)


def place_moments(moments: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Adam moments by parameter name, each sharded like its parameter."""
    parameters = dict(model.named_parameters())
    return {
        name: replace(
            moment,
            exp_avg=like_parameter(moment.exp_avg, parameters[name]),
            exp_avg_sq=like_parameter(moment.exp_avg_sq, parameters[name]),
        )
        for name, moment in moments.items()
        if name in parameters
    } | {name: moment for name, moment in moments.items() if name not in parameters}


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` of a state with complete tensors, each sharded like its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = {
        index: {name: like_parameter(value, parameters[index]) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})
