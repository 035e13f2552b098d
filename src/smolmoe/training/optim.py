"""Parameter groups with separate learning rates, router warm-up, and carried moments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from smolmoe.errors import RequestError
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import find_layers
from smolmoe.recipe import AlignRecipe, TrainRecipe


def learning_rate_factors(model: Any, base: float, recipe: TrainRecipe | AlignRecipe) -> dict[str, float]:
    """Parameter name -> its learning rate in the recipe, divided by the run's, if the recipe sets one."""
    factors: dict[str, float] = {}
    if recipe.routing.learning_rate is not None:
        factors |= dict.fromkeys(router_names(model), recipe.routing.learning_rate / base)
    if isinstance(recipe, TrainRecipe) and recipe.expert_learning_rate is not None:
        factors |= dict.fromkeys(expert_names(model), recipe.expert_learning_rate / base)
    return factors


def router_names(model: Any) -> set[str]:
    """Names of all parameters of routers."""
    ids = {id(p) for _, router in find_routers(model) for p in router.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def expert_names(model: Any) -> set[str]:
    """Names of the routed experts' stacked weights: 3-D, one matrix per expert."""
    path, _ = find_layers(model)
    routers = router_names(model)
    return {
        name
        for name, parameter in model.named_parameters()
        if name.startswith(f"{path}.")
        and ".experts." in f".{name}"
        and "shared" not in name
        and name not in routers
        and parameter.ndim >= 2
    }


def freeze(model: Any, trainable: str) -> None:
    """Freeze all but the routers if `trainable` is "routers"."""
    if trainable == "all":
        return
    routers = router_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in routers)


def split_groups(
    optimizer: torch.optim.Optimizer,
    model: Any,
    factors: Mapping[str, float],
    scales: Mapping[str, float],
    slow: Collection[str],
    muon: Mapping[str, str] | None = None,
) -> None:
    """Split an optimiser's groups so that each has one learning rate. In place, before training.

    Args:
        factors: on learning rates, by parameter name.
        scales: s of tensors that a conversion scaled. Adam moves an entry by about lr whatever its size, so the rate is
            scaled as well; weight decay, which is multiplied by the rate, is divided by s.
        slow: parameters that `slow_start` acts on.
        muon: for `Muon`, the layouts of the parameters that are not AdamW's.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        parts: dict[tuple[bool, float, float, str], list[Any]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            key = name in slow, factors.get(name, 1.0), scales.get(name, 1.0), (muon or {}).get(name, "")
            parts.setdefault(key, []).append(parameter)
        for (is_slow, factor, scale, layout), parameters in sorted(parts.items(), key=lambda part: part[0]):
            rates = {"lr": group["lr"] * factor * scale, "weight_decay": group.get("weight_decay", 0.0) / scale}
            marks = {"slow": is_slow} if muon is None else {"slow": is_slow, "muon": layout}
            groups.append({**group, "params": parameters, **rates, **marks})
    optimizer.param_groups[:] = groups


def slow_start(scheduler: Any, optimizer: Any, *, freeze: int, warmup: int) -> None:
    """Freeze the slow groups for `freeze` steps, then ramp up to the schedule within `warmup` more.

    Raises:
        RequestError: the schedule is not one of factors on the learning rate.
    """
    if not (freeze or warmup):
        return
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise RequestError(
            f"cannot be combined with {type(scheduler).__name__}.",
            field="routing.warmup_steps",
            value=warmup,
            fix="Use a schedule such as cosine, linear, constant or inverse_sqrt.",
        )

    def slowed(base: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: base(step) * min(1.0, max(0, step + 1 - freeze) / max(1, warmup))

    for index, group in enumerate(optimizer.param_groups):
        if group.get("slow"):
            scheduler.lr_lambdas[index] = slowed(scheduler.lr_lambdas[index])
    # The scheduler set the rate of the first step when it was made.
    for index, group in enumerate(optimizer.param_groups):
        group["lr"] = scheduler.base_lrs[index] * scheduler.lr_lambdas[index](scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def install_moments(optimizer: Any, model: Any, moments: Mapping[str, Any]) -> int:
    """Give parameters their carried state and return how many got one; the others start from zero.

    A parameter that Muon trains takes the mean of the gradients alone.

    Raises:
        RequestError: the state is of another model.
    """
    parameters = dict(model.named_parameters())
    on_device = {id(p) for group in optimizer.param_groups if _counts_on_device(group) for p in group["params"]}
    by_muon = {id(p) for group in optimizer.param_groups if group.get("muon") for p in group["params"]}
    for name, moment in moments.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != moment.exp_avg.shape:
            raise RequestError(
                "the optimiser state there is from a different model.",
                field="carry.optimizer",
                value=name,
                fix="Use the run that trained this model, or the dense model it was made from.",
            )
        mean, squares = moment.exp_avg.to(parameter).contiguous(), moment.exp_avg_sq.to(parameter).contiguous()
        if id(parameter) in by_muon:
            optimizer.state[parameter] = {"step": torch.tensor(float(moment.step)), "momentum_buffer": mean}
        else:
            step = torch.tensor(float(moment.step), device=parameter.device if id(parameter) in on_device else "cpu")
            optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": squares}
    return len(moments)


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    """Whether torch's kernels read the number of steps of a group's parameters where these are."""
    return bool(group.get("fused") or group.get("capturable"))
