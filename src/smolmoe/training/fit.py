"""Checks of a recipe against a model's config, before text or weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS
from smolmoe.moe.balance import has_selection_bias
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.losses import ROUTER_LOSSES
from smolmoe.moe.routing import find_routers
from smolmoe.recipe import TrainRecipe
from smolmoe.recipe.schedule import Schedule, schedule_of
from smolmoe.recipe.train import ObjectiveRecipe, RoutingRecipe
from smolmoe.training.guidance import Guidance, check_named


def check_fits(recipe: TrainRecipe, model: Any, granularity: int) -> None:
    """Raises RequestError if this model cannot do what the recipe asks.

    Args:
        model: loaded, or without its weights.
        granularity: G of an upcycled model.
    """
    routers = [router for _, router in find_routers(model)]
    if recipe.trainable == "routers" and not routers:
        raise RequestError("the model is dense: it has no routers.", field="trainable", value=recipe.trainable)
    if recipe.trainable == "routers" and gate_spec(routers[0]).fixed_gates and not _moves_routers(recipe):
        raise RequestError(
            "the gate of a token's only expert is constant, so the cross-entropy does not train the routers.",
            field="trainable",
            value=recipe.trainable,
            fix="Add guidance or a router loss such as objective.load_balance, or train all parameters.",
        )
    check_terms(model, recipe.objective, recipe.routing, routers, granularity)
    if recipe.guidance is not None:
        check_named(recipe.guidance, model, recipe.routing.reserved)
    if recipe.carry is not None and recipe.model.path is None:
        raise RequestError(
            "a new model has no state to carry.",
            field="carry",
            value=recipe.carry.optimizer,
            fix="Remove it.",
        )
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if recipe.trainer.get(name) and not model.supports_gradient_checkpointing:
            raise RequestError(
                f"{type(model).__name__} does not support it.", field=f"trainer.{name}", value=True, fix="Remove it."
            )


def _moves_routers(recipe: TrainRecipe) -> bool:
    """Whether something other than the language model's loss trains the routers."""
    weights = (getattr(recipe.objective, loss.name) for loss in ROUTER_LOSSES)
    return recipe.guidance is not None or any(weights)


def check_terms(
    model: Any, objective: ObjectiveRecipe, routing: RoutingRecipe, routers: Sequence[Any], granularity: int
) -> None:
    """Raises RequestError for router terms and interventions that do not apply to this model."""
    if not routers:
        asked = {f"objective.{name}": value for name, value in objective.model_dump(exclude_defaults=True).items()}
        asked |= {f"routing.{name}": value for name, value in routing.model_dump(exclude_defaults=True).items()}
        for field, value in asked.items():
            raise RequestError(
                "the model is dense: it has no routers.", field=field, value=value, fix="Remove it, or use an MoE."
            )
        return
    for name in ("bias_rate", "preset_bias"):
        if getattr(objective, name) and not has_selection_bias(model):
            biased = [name for name, target in MOE_TARGETS.items() if target.names.selection_bias]
            raise RequestError(
                f"{type(model).__name__} has no selection bias to balance with.",
                field=f"objective.{name}",
                value=getattr(objective, name),
                fix=f"Use objective.load_balance, or a class that has one: {', '.join(biased)}.",
            )
    if routing.tie_groups and granularity < 2:
        raise RequestError(
            "the experts form no groups (granularity 1).",
            field="routing.tie_groups",
            value=routing.tie_groups,
            fix="Remove it.",
        )
    if routing.top_k is not None:
        _check_top_k(schedule_of(routing.top_k), routers, granularity if routing.tie_groups else 1)
    experts = gate_spec(routers[0]).experts
    beyond = [expert for expert in routing.reserved if expert >= experts]
    if beyond or len({*routing.reserved}) >= experts:
        raise RequestError(
            f"the model has experts 0 to {experts - 1}, and at least one must not be reserved.",
            field="routing.reserved",
            value=beyond or list(routing.reserved),
            fix="Remove it, or reserve fewer experts.",
        )


def _check_top_k(schedule: Schedule, routers: Sequence[Any], granularity: int) -> None:
    """Raises RequestError for a number of experts per token that these routers cannot choose."""
    specs = [gate_spec(router) for router in routers]
    most, k = min(spec.most for spec in specs), specs[0].top_k
    wrong = next(
        (value for value in sorted(schedule.whole_values()) if not (value <= most and value % granularity == 0)), None
    )
    problem = fix = None
    if wrong is not None:
        problem = f"{wrong} of {most} experts cannot be chosen"
        fix = f"Use at most {most}." if granularity == 1 else f"Use multiples of {granularity}, whole groups."
    elif any(spec.top_k != schedule.last for spec in specs):
        problem, fix = f"the model chooses {k} experts, but the schedule ends at {schedule.last:g}", f"End it with {k}."
    if problem is not None:
        raise RequestError(f"{problem}.", field="routing.top_k", value=schedule.plain(), fix=fix)


def check_balance(objective: ObjectiveRecipe, guidance: Guidance) -> None:
    """Raises RequestError for a balance term if guidance leaves nothing to balance."""
    alone = bool((guidance.allowed.sum(-1) == 1).all())
    for name in (*objective.balancing, "bias_rate"):
        if alone and getattr(objective, name):
            raise RequestError(
                "every domain has one expert: there is nothing to balance.",
                field=f"objective.{name}",
                value=getattr(objective, name),
                fix="Remove it, or give a domain several experts.",
            )
