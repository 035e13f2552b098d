"""Interventions attached to the routers of a model, and their effect on a saved model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import nn

from smolmoe.errors import CheckpointError, RequestError, TargetError
from smolmoe.moe.gating import GateSpec, Intervention, RouterOutput, gate_spec, route, router_weight, selection_bias
from smolmoe.moe.restrict import AVAILABLE
from smolmoe.moe.routing import find_routers

NOISE = "noise_weight"


@dataclass(frozen=True)
class _Gating:
    spec: GateSpec
    intervention: Intervention


class RouterControl:
    """An intervention active in every router of a model. Created by `control_routers`.

    Attributes:
        model: the model.
        routers: (layer index, router) of every MoE layer.
        intervention: the change applied to them.
    """

    def __init__(self, model: nn.Module, routers: list[tuple[int, nn.Module]], intervention: Intervention):
        self.model: Any = model
        self.routers: list[tuple[int, Any]] = list(routers)
        self.intervention = intervention
        self._hidden_keys: set[str] = set()
        for _, router in routers:
            self._attach(router)
        if intervention.noise == "learned":
            self._hide_from_saving()

    def detach(self) -> None:
        """Restore the original `forward` of every router. A temperature that was not folded in is lost."""
        for _, router in self.routers:
            del router.forward, router.smolmoe_gating
            if hasattr(router, NOISE):
                delattr(router, NOISE)
        if self._hidden_keys:
            self.model._keys_to_ignore_on_save = set(_ignored(self.model)) - self._hidden_keys
            self._hidden_keys = set()

    def change(self, **values: Any) -> None:
        """Set values of the intervention in every router. Learned noise cannot be turned on or off."""
        changed = replace(self.intervention, **values)
        if changed == self.intervention:
            return
        self.intervention = changed
        for _, router in self.routers:
            router.smolmoe_gating = replace(router.smolmoe_gating, intervention=changed)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the temperature into the router weights, W / temperature, permanently. No output changes.

        The optimiser state of these weights is then no longer valid; during training, save within `folded`.
        """
        for _, router in self.routers:
            router_weight(router).div_(self.intervention.temperature)
        self.change(temperature=1.0)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Inside the context the weights include the temperature, for saving; afterwards they are bitwise as before."""
        temperature = self.intervention.temperature
        if temperature == 1:
            yield
            return
        before = [router_weight(router).detach().clone() for _, router in self.routers]
        self.fold()
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, router), weight in zip(self.routers, before, strict=True):
                    router_weight(router).copy_(weight)
            self.change(temperature=temperature)

    def _attach(self, router: Any) -> None:
        gating = _Gating(gate_spec(router), self.intervention)
        if self.intervention.noise == "learned":
            router.register_parameter(NOISE, nn.Parameter(torch.zeros_like(router_weight(router))))
        router.smolmoe_gating = gating
        # A bound method, so that a deep copy of the model routes with its own weights.
        router.forward = MethodType(_controlled_forward, router)

    def _hide_from_saving(self) -> None:
        ours = {id(router.get_parameter(NOISE)) for _, router in self.routers}
        self._hidden_keys = {name for name, parameter in self.model.named_parameters() if id(parameter) in ours}
        self.model._keys_to_ignore_on_save = set(_ignored(self.model)) | self._hidden_keys


def control_routers(model: nn.Module, intervention: Intervention) -> RouterControl:
    """Attach an intervention to every router of a model, before the model is wrapped or its optimiser made.

    Learned noise adds a parameter `noise_weight` [E, D] of zeros to every router; `save_pretrained` omits it.

    Raises:
        TargetError: the model has no router, one of an unknown class, or one that does not compute what is
            expected of its class (a different version of transformers).
        RequestError: the routers are already under control, or granularity does not divide K and the groups of E.
    """
    routers = find_routers(model)
    if not routers:
        raise TargetError("the model has no routers.", field="model", value=type(model).__name__)
    for _, router in routers:
        if hasattr(router, "smolmoe_gating"):
            raise RequestError("its routers are already under control.", field="model", fix="Detach that first.")
        spec = gate_spec(router)
        if spec.top_k % intervention.granularity or spec.experts // spec.groups % intervention.granularity:
            raise RequestError(
                f"does not divide K = {spec.top_k} and {spec.experts // spec.groups} experts.",
                field="granularity",
                value=intervention.granularity,
            )
        _check(router, spec)
    return RouterControl(model, routers, intervention)


def without_training_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without training-only weights: those of learned noise."""
    return {name: tensor for name, tensor in state.items() if name.rsplit(".", 1)[-1] != NOISE}


def saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What resuming needs but a saved model lacks: learned noise, and the weights without the folded temperature.

    Names are `{layer}.noise_weight` and `{layer}.weight`; empty if nothing is missing.
    """
    return {name: tensor.detach().clone() for name, tensor in _training_state(model).items()}


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Restore the result of `saved_state` into a model under the same intervention.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = _training_state(model)
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            "this router training state is from a different model or intervention.", field="state", value=wrong[0]
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


@torch.no_grad()
def measure_flips(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float:
    """Share of tokens whose set of experts differs between fp32 routing and the model's dtype, over all layers.

    Both see the same hidden states, in evaluation mode, under the caller's autocast: 0 in fp32.
    Masked tokens do not count.

    Args:
        batches: keyword arguments of the model, `input_ids` among them.
    """
    counts: list[torch.Tensor] = []  # [flips, tokens] of each call
    was_training, keep = model.training, None

    def compare(router: Any, args: Any, output: RouterOutput) -> None:
        weight = router_weight(router)
        x = args[0].reshape(-1, weight.shape[-1])
        gating = getattr(router, "smolmoe_gating", None)
        spec, act = (gating.spec, gating.intervention) if gating else (gate_spec(router), Intervention())
        bias = args[1] if len(args) > 1 else selection_bias(router)
        exact = Intervention(temperature=act.temperature, fp32=True)
        _, _, chosen = route(x, weight, bias, spec, exact, training=True)
        differs = (chosen.sort(-1).values != output[2].sort(-1).values).any(-1)
        valid = torch.ones_like(differs) if keep is None else keep
        counts.append(torch.stack([(differs & valid).sum(), valid.sum()]))

    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for _, router in find_routers(model):
            stack.callback(router.register_forward_hook(compare).remove)
        for batch in batches:
            mask = batch.get("attention_mask")
            keep = None if mask is None else mask.reshape(-1).bool()
            model(**batch)
    if not counts:
        return 0.0
    flips, tokens = torch.stack(counts).sum(0).tolist()
    return flips / max(1, tokens)


def _controlled_forward(router: Any, hidden_states: torch.Tensor, bias: torch.Tensor | None = None) -> RouterOutput:
    gating: _Gating = router.smolmoe_gating
    return route(
        hidden_states,
        router_weight(router),
        selection_bias(router) if bias is None else bias,
        gating.spec,
        gating.intervention,
        training=router.training,
        noise_weight=getattr(router, NOISE, None),
        available=getattr(router, AVAILABLE, None),
    )


@torch.no_grad()
def _check(router: Any, spec: GateSpec) -> None:
    """Run a few random tokens through both: class names guarantee nothing across versions of transformers."""
    weight, bias = router_weight(router), selection_bias(router)
    if weight.is_meta or hasattr(weight, "placements"):  # no values, or a shard of them
        return
    x = torch.arange(8 * weight.shape[-1], device=weight.device).sin().view(8, -1).to(weight.dtype)
    if getattr(router, "use_expert_bias", False):  # LFM2's block passes it
        bias = torch.arange(spec.experts, device=weight.device) / spec.experts
        stock = type(router).forward(router, x, bias)
    else:
        stock = type(router).forward(router, x)
    ours = route(x, weight, bias, spec)
    same = len(stock) == len(ours) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(stock, ours, strict=True)
    )
    if not same:
        raise TargetError(
            "this router does not compute what is expected of its class.",
            field="router",
            value=type(router).__name__,
            fix="Use the version of transformers that smolmoe is tested with.",
        )


def _training_state(model: nn.Module) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for layer, router in find_routers(model):
        gating = getattr(router, "smolmoe_gating", None)
        if gating is None:
            continue
        if gating.intervention.noise == "learned":
            found[f"{layer}.{NOISE}"] = router.get_parameter(NOISE)
        if gating.intervention.temperature != 1:
            found[f"{layer}.weight"] = router_weight(router)
    return found


def _ignored(model: Any) -> Iterable[str]:
    return getattr(model, "_keys_to_ignore_on_save", None) or ()
