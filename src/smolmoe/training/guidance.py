"""The experts that each domain of the data is guided to, as tensors for one model and one corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.data.corpus import UNKNOWN_DOMAIN
from smolmoe.errors import DataError, RequestError
from smolmoe.moe import losses
from smolmoe.moe.gating import gate_spec
from smolmoe.moe.names import expert_names, group_by_name, set_expert_names
from smolmoe.moe.routing import find_routers
from smolmoe.recipe.train import GuidanceRecipe


@dataclass(frozen=True)
class Guidance:
    """Guidance, with domains in the corpus's order.

    Attributes:
        weight: of the term.
        target: [Dm, E], the router's target probabilities.
        members: [Dm, E] bool, each domain's experts.
        free: [E] bool.
        token_weights: [Dm], of a token of each domain, 1 on average over the training.
        layers: positions of the guided layers among the MoE layers.
    """

    weight: float
    target: torch.Tensor
    members: torch.Tensor
    free: torch.Tensor
    token_weights: torch.Tensor
    layers: tuple[int, ...]

    @property
    def allowed(self) -> torch.Tensor:
        """[Dm, E] bool: a domain's own experts and the free ones."""
        return self.members | self.free

    def to(self, device: torch.device) -> Guidance:
        tensors = self.target, self.members, self.free, self.token_weights
        target, members, free, token_weights = (tensor.to(device) for tensor in tensors)
        return Guidance(self.weight, target, members, free, token_weights, self.layers)

    def term(self, logits: torch.Tensor, domain_ids: torch.Tensor, scoring: str) -> torch.Tensor:
        """The weighted KL of router logits [L, T, E] of all MoE layers for tokens of these domains [T]."""
        guided = logits[list(self.layers)]
        weights = self.token_weights[domain_ids]
        per_layer = losses.guidance(guided, self.target[domain_ids], self.free, scoring, weights)
        return self.weight * per_layer.mean()

    def hits(self, logits: torch.Tensor, domain_ids: torch.Tensor) -> torch.Tensor:
        """[guided layers] int64: tokens whose most likely expert, ignoring free ones, is their domain's."""
        first = logits[list(self.layers)].detach().masked_fill(self.free, float("-inf")).argmax(-1)
        return self.members[domain_ids].gather(1, first.T).sum(0)

    def mean_load(self, load: torch.Tensor) -> torch.Tensor:
        """[L, E]: for each expert the mean load of the experts of its domain, to compare its own load with."""
        groups = torch.cat([self.members, self.free[None]])
        same = (groups[:, :, None] == groups[:, None, :]).all(0).to(load.dtype)  # [E, E]
        return load @ same / same.sum(0)


def resolve(recipe: GuidanceRecipe, model: Any, shares: Mapping[str, float], reserved: Sequence[int] = ()) -> Guidance:
    """Check the recipe against the model and the corpus, and write the names into the model's config.

    Args:
        shares: of each of the corpus's domains, in order, of the tokens to train on.
        reserved: experts that stay idle.

    Raises:
        RequestError: an expert or layer does not exist, an expert is not covered, or a domain has no rows.
        DataError: rows without a domain, or of a domain that has no expert.
    """
    layers, experts, named = _model_of(recipe, model)
    domains = [domain for domain, share in shares.items() if share]
    _check_experts(named, recipe.free, reserved, experts, domains)
    _check_domains(named, domains)
    members = torch.zeros(len(shares), experts, dtype=torch.bool)
    for row, domain in enumerate(shares):
        members[row, list(named.get(domain, ()))] = True  # empty for a domain of held-out text only
    free = torch.zeros(experts, dtype=torch.bool)
    free[list(recipe.free)] = True
    _check_floor(recipe.floor, members, free)
    names = {expert: name for name, own in named.items() for expert in own}
    set_expert_names(model.config, [names.get(expert) for expert in range(experts)], recipe.layers)
    target = losses.guidance_target(members, free, recipe.floor)
    weights = _token_weights(recipe.evenness, shares)
    return Guidance(recipe.weight, target, members, free, weights, _layers(recipe.layers, layers))


def check_named(recipe: GuidanceRecipe, model: Any, reserved: Sequence[int] = ()) -> None:
    """The checks of `resolve` that need no corpus; raises RequestError."""
    layers, experts, named = _model_of(recipe, model)
    if named:
        _check_experts(named, recipe.free, reserved, experts, ())
    _layers(recipe.layers, layers)


def _model_of(recipe: GuidanceRecipe, model: Any) -> tuple[list[int], int, dict[str, tuple[int, ...]]]:
    """The model's layers with routers, its number of experts, and name -> experts of the recipe or the model."""
    found = find_routers(model)
    if not found:
        raise RequestError("the model is dense: it has no experts to name.", field="guidance", value=None)
    named = recipe.experts or group_by_name(expert_names(model.config) or ())
    return [layer for layer, _ in found], gate_spec(found[0][1]).experts, named


def _token_weights(evenness: float, shares: Mapping[str, float]) -> torch.Tensor:
    """[Dm]: share to the power of -evenness, 1 on average over tokens.

    Not over the domains of each batch: the same token would then weigh differently in another cut of the same step.
    """
    weights = torch.tensor([share**-evenness if share else 0.0 for share in shares.values()])
    return weights / (weights * torch.tensor(list(shares.values()))).sum()


def _check_experts(
    named: Mapping[str, Sequence[int]],
    free: Sequence[int],
    reserved: Sequence[int],
    experts: int,
    domains: Sequence[str],
) -> None:
    if not named:
        raise RequestError(
            "neither the recipe nor the model names any expert.",
            field="guidance.experts",
            value=None,
            fix=f"Give each domain its experts: {', '.join(f'{name}: [{i}]' for i, name in enumerate(domains))}.",
        )
    given = [*(expert for own in named.values() for expert in own), *free, *reserved]
    beyond = sorted({expert for expert in given if not 0 <= expert < experts})
    if beyond:
        too_many = f" There are more domains ({len(named)}) than experts." if len(named) > experts else ""
        raise RequestError(
            f"the model has experts 0 to {experts - 1}.{too_many}", field="guidance.experts", value=beyond
        )
    left = [expert for expert in range(experts) if expert not in given]
    if left:
        raise RequestError(
            f"no domain is given for the experts {', '.join(map(str, left))}.",
            field="guidance.experts",
            value=left,
            fix="Assign them to a domain, or list them under guidance.free or routing.reserved.",
        )


def _check_domains(named: Mapping[str, Sequence[int]], domains: Sequence[str]) -> None:
    absent = [name for name in named if name not in domains]
    if absent:
        raise RequestError(
            f"the data has no rows of this domain; its domains are {', '.join(domains)}.",
            field="guidance.experts",
            value=absent[0],
            fix="Add text of that domain, or remove it.",
        )
    unnamed = [name for name in domains if name not in named]
    if not unnamed:
        return
    if unnamed == [UNKNOWN_DOMAIN]:
        raise DataError(
            "there are rows without a domain, which cannot be assigned to an expert.",
            field="data.sources",
            value=UNKNOWN_DOMAIN,
            fix="Tag them: set the source's `domain`, or name the column in `domain_column`.",
        )
    raise DataError(
        "the data has rows of a domain without experts.",
        field="guidance.experts",
        value=unnamed[0],
        fix="Give it experts, or remove its rows.",
    )


def _check_floor(floor: float, members: torch.Tensor, free: torch.Tensor) -> None:
    off = int((~members & ~free).sum(-1).max())
    if floor * off >= 1:
        raise RequestError(
            f"{off} other experts of this probability leave nothing for a domain's own experts.",
            field="guidance.floor",
            value=floor,
        )


def _layers(asked: Sequence[int] | None, present: Sequence[int]) -> tuple[int, ...]:
    """Indices of the requested layers among those with a router."""
    wrong = [layer for layer in asked or () if layer not in present]
    if wrong or asked == ():
        raise RequestError(
            f"layers with routers: {', '.join(map(str, present))}.",
            field="guidance.layers",
            value=wrong or list(asked or ()),
        )
    return tuple(present.index(layer) for layer in asked) if asked is not None else tuple(range(len(present)))
