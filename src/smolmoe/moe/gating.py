"""What the routers of transformers compute, as one function, and the interventions for training.

A stock router fuses matmul, scores and top-k in its `forward`. `route` computes the same, bit for bit, from a
description of the router, and allows interventions. It is installed as the `forward` of the instance: modules,
hooks, recorded logits and parameter names do not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from smolmoe.errors import RequestError, TargetError
from smolmoe.moe.generic import first_to_reach, within_capacity

Scoring = Literal["softmax", "sigmoid"]
RouterOutput = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
NOISE_FLOOR = 1e-2  # of learned noise (arXiv 1701.06538)
_LAST = -1e4  # a rank below every score and logit


@dataclass(frozen=True)
class GateSpec:
    """What a router module does.

    Attributes:
        experts, top_k: E and K.
        scoring: how logits become scores.
        over_chosen: the K highest logits are chosen, and the scores are of those only (their softmax in fp32).
        renormalise: the chosen scores are divided by their sum + epsilon.
        fp32_logits: the matmul takes fp32 inputs (which autocast lowers all the same, as it does in the stock class).
        no_autocast: autocast does not lower them.
        fp32_output: logits are converted to fp32 after the matmul.
        weights_like: number type of the gates: of the scores, of the logits, or of the input.
        groups, top_groups: experts form equal groups, and only those of each token's best groups can be chosen.
        scale: of the gates.
        ordered: the K chosen experts come best first.
        top_p, capacity_factor: see `SmolMoeConfig`.
    """

    experts: int
    top_k: int
    scoring: Scoring = "softmax"
    over_chosen: bool = False
    renormalise: bool = True
    epsilon: float = 0.0
    fp32_logits: bool = False
    no_autocast: bool = False
    fp32_output: bool = False
    weights_like: Literal["scores", "logits", "input"] = "logits"
    groups: int = 1
    top_groups: int = 1
    scale: float = 1.0
    ordered: bool = True
    top_p: float | None = None
    capacity_factor: float | None = None

    @property
    def constant_sum(self) -> bool:
        """Whether a token's gates have the same sum, whatever the router computes."""
        everything = self.scoring == "softmax" and self.top_k == self.experts
        return self.renormalise or (self.over_chosen and self.scoring == "softmax") or everything

    @property
    def fixed_gates(self) -> bool:
        """Whether the gate of a token's single expert is constant, whatever the router computes."""
        return self.top_k == 1 and self.renormalise

    @property
    def most(self) -> int:
        """The number of experts that one token can choose at most: those of its best groups."""
        return self.experts // self.groups * self.top_groups

    def choosing(self, top_k: int) -> GateSpec:
        """The same with another K, for which equal experts give the same output."""
        return replace(self, top_k=top_k, scale=self.scale if self.renormalise else self.scale * self.top_k / top_k)


@dataclass(frozen=True)
class Intervention:
    """An intervention on a router during training. By default none.

    Noise, sampling, expert dropout and fp32 act in training mode only. Temperature acts in evaluation too: it is part
    of the function that is trained, and is folded into the weights when they are saved.

    Attributes:
        noise: std of Gaussian noise on the logits, for choice and gates, or "learned": N(0, 1) * (softplus(x W_noise)
            + 1e-2) per token and expert (noisy top-k, arXiv 1701.06538).
        temperature: logits are divided by it.
        sample: scale of the Gumbel noise on the logarithms of the scores by which experts are chosen. 1: the K experts
            are sampled without replacement, by their probabilities (Gumbel top-k, arXiv 1903.06059); 0: the top K. The
            gates are not affected.
        top_k: number of experts instead of K. Gates that are not renormalised are scaled by K / top_k, so that equal
            experts give the same output.
        expert_dropout: probability that an expert cannot be chosen during a call of its router. K always can; scores
            are those of a router without the others.
        fp32: logits and scores in fp32, whatever the model's type.
        granularity: consecutive experts that share random numbers: shards of a split FFN are chosen together or not.

    Raises:
        RequestError: a value is out of its range.
    """

    noise: float | Literal["learned"] = 0.0
    temperature: float = 1.0
    sample: float = 0.0
    top_k: int | None = None
    expert_dropout: float = 0.0
    fp32: bool = False
    granularity: int = 1

    def __post_init__(self) -> None:
        ranges = {
            "noise": 0 <= self.noise < math.inf if isinstance(self.noise, int | float) else self.noise == "learned",
            "temperature": 0 < self.temperature < math.inf,
            "sample": 0 <= self.sample < math.inf,
            "top_k": self.top_k is None or self.top_k >= 1,
            "expert_dropout": 0 <= self.expert_dropout < 1,
            "granularity": self.granularity >= 1,
        }
        for name, valid in ranges.items():
            if not valid:
                raise RequestError("is out of range.", field=name, value=getattr(self, name))


def gate_spec(router: nn.Module) -> GateSpec:
    """The spec of this router, by the class that defines its `forward`.

    Raises:
        TargetError: its class is unknown.
    """
    owner = _owner(router)
    if owner not in _SPECS:
        raise TargetError(
            "this router's class is not supported.",
            field="router",
            value=owner,
            fix=f"Supported: {', '.join(sorted(_SPECS))}.",
        )
    return _SPECS[owner](router)


def router_weight(router: Any) -> nn.Parameter:
    """[E, D]; inside a linear layer in Hunyuan."""
    return router.weight if hasattr(router, "weight") else router.wg.weight


def selection_bias(router: Any, block: nn.Module | None = None) -> torch.Tensor | None:
    """[E], a view of what a router adds to the scores for the choice alone; None if it has no such bias.

    Args:
        block: the module that the router is in: LFM2 keeps the bias there.
    """
    bias = getattr(getattr(router, "moe_statics", router), "e_score_correction_bias", None)
    bias = getattr(block, "expert_bias", None) if bias is None else bias
    return bias if bias is None or bias.ndim == 1 else bias[0]


def is_known(router: nn.Module) -> bool:
    """Whether `gate_spec` supports this router."""
    return _owner(router) in _SPECS


def _owner(router: nn.Module) -> str:
    # By the class that defines it: FSDP and quantisers put an empty subclass in front.
    return next(cls.__name__ for cls in type(router).__mro__ if "forward" in vars(cls))


def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    spec: GateSpec,
    intervention: Intervention | None = None,
    *,
    training: bool = False,
    noise_weight: torch.Tensor | None = None,
    available: torch.Tensor | None = None,
) -> RouterOutput:
    """Logits [T, E], gates [T, K] and chosen experts [T, K] of x [..., D]; without an intervention, the stock router's.

    The logits returned are the clean ones, after temperature and before noise and dropout: balance and z-loss describe
    the router that will be saved. Random numbers come from torch's global generator, so gradient checkpointing (with
    use_reentrant=False) repeats the same ones.

    Args:
        weight: [E, D].
        bias: [E], added to scores only for the choice, or None.
        training: whether training-only interventions are active.
        noise_weight: [E, D], the W_noise of learned noise.
        available: [E] bool, the experts that can be chosen at all. If they are fewer than K, the rest of the K have
            gate 0.
    """
    act = intervention or Intervention()
    x = x.reshape(-1, x.shape[-1])
    # Divide the weights, not the logits, so that folding the temperature in is bit-exact.
    weight = weight if act.temperature == 1 else weight / act.temperature
    if not training:
        logits = _logits(x, weight, spec)
        gates, chosen = choose(logits, bias, spec, available)
        return logits, _typed(gates, spec, logits.dtype, x.dtype), chosen
    spec = spec if act.top_k is None else spec.choosing(act.top_k)
    logits = _fp32_logits(x, weight) if act.fp32 else _logits(x, weight, spec)
    if act.expert_dropout:
        available = _both(_available(spec, act, logits), available)
    gates, chosen = choose(_noisy(logits, x, act, noise_weight), bias, spec, available, act)
    if spec.fixed_gates and not x.requires_grad:  # a gradient of zero: without it a frozen model needs no backward pass
        gates = gates.detach()
    return logits, _typed(gates, spec, _served_type(x, spec) if act.fp32 else logits.dtype, x.dtype), chosen


def _logits(x: torch.Tensor, weight: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    if spec.no_autocast:
        return _fp32_logits(x, weight)
    if spec.fp32_logits:
        return F.linear(x.float(), weight.float())
    logits = F.linear(x, weight)
    return logits.float() if spec.fp32_output else logits


def _fp32_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def _served_type(x: torch.Tensor, spec: GateSpec) -> torch.dtype:
    """The dtype of the logits without an intervention."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return torch.float32 if spec.fp32_logits else x.dtype


def _typed(gates: torch.Tensor, spec: GateSpec, logits: torch.dtype, x: torch.dtype) -> torch.Tensor:
    return gates if spec.weights_like == "scores" else gates.to(logits if spec.weights_like == "logits" else x)


def choose(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    spec: GateSpec,
    available: torch.Tensor | None = None,
    act: Intervention | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates and chosen experts, [T, K] each, of logits [T, E]; `bias` and `available` as in `route`."""
    if available is not None:
        logits = logits.masked_fill(~available, float("-inf"))
    scores = router_scores(logits, spec)
    ranking = (scores if bias is None else scores + bias).detach()
    if available is not None:
        # Finite, so that a group with a single expert left ranks above one with none.
        ranking = ranking.masked_fill(~available, _LAST)
    allowed = _in_top_groups(ranking, spec) if spec.top_groups < spec.groups else available
    if allowed is not None and available is not None:
        allowed = allowed & available
    if act is not None and act.sample:
        # Biased scores serve as probabilities; those that the bias makes negative are practically never sampled.
        log_chance = ranking if spec.over_chosen else ranking.float().clamp_min(1e-30).log()
        ranking = log_chance - act.sample * _shared(torch.Tensor.exponential_, log_chance, act.granularity).log()
    if allowed is not None:
        ranking = ranking.masked_fill(~allowed, float("-inf"))
    chosen = ranking.topk(spec.top_k, dim=-1, sorted=spec.ordered).indices
    return _gates(scores, chosen, spec), chosen


def router_scores(logits: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    """[T, E], by which a router chooses, without its bias."""
    if spec.over_chosen:
        return logits
    return logits.softmax(-1, dtype=torch.float32) if spec.scoring == "softmax" else logits.sigmoid()


def _gates(scores: torch.Tensor, chosen: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    gates = scores.gather(-1, chosen)
    if spec.over_chosen and spec.scoring == "softmax":
        return gates.softmax(-1, dtype=torch.float32)
    if spec.over_chosen:
        gates = gates.sigmoid()
    if spec.top_p is not None:
        gates = gates * first_to_reach(spec.top_p, gates / scores.sum(-1, keepdim=True))
    if spec.renormalise:
        total = gates.sum(-1, keepdim=True)
        # Stock classes divide in place, so a sum that autocast widens (it does on CUDA) leaves the gates' type alone.
        gates = (gates / (total + spec.epsilon if spec.epsilon else total)).to(gates.dtype)
    if spec.scale != 1:
        gates = gates * spec.scale
    if spec.capacity_factor is not None:
        gates = gates * within_capacity(spec.capacity_factor, chosen, gates != 0, spec.experts)
    return gates


def _in_top_groups(ranking: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    """[T, E] bool. A group ranks by the sum of its two best experts (arXiv 2412.19437)."""
    group_scores = ranking.unflatten(-1, (spec.groups, -1)).topk(2, dim=-1).values.sum(-1)
    best = group_scores.topk(spec.top_groups, dim=-1, sorted=False).indices
    inside = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, best, True)
    return inside.repeat_interleave(spec.experts // spec.groups, dim=-1)


def _noisy(logits: torch.Tensor, x: torch.Tensor, act: Intervention, noise_weight: torch.Tensor | None) -> torch.Tensor:
    if act.noise == 0:
        return logits
    # In fp32: bf16 would round small noise away.
    noise = _shared(torch.Tensor.normal_, logits.float(), act.granularity)
    if act.noise != "learned":
        return logits.float() + noise * act.noise
    if noise_weight is None:
        raise RequestError("learned noise needs its weight [E, D].", field="noise_weight", value=None)
    return logits.float() + noise * (F.softplus(F.linear(x.to(noise_weight), noise_weight).float()) + NOISE_FLOOR)


def _available(spec: GateSpec, act: Intervention, logits: torch.Tensor) -> torch.Tensor:
    """[E] bool, sampled once per call. Every routing group keeps as many experts as a choice of K may need."""
    draws = torch.rand(spec.groups, spec.experts // spec.groups // act.granularity, device=logits.device)
    needed = math.ceil(spec.top_k / spec.top_groups / act.granularity)
    floor = draws.topk(needed, dim=-1).values[:, -1:]
    stays = draws >= floor.clamp_max(act.expert_dropout)
    return stays.flatten().repeat_interleave(act.granularity)


def _both(stays: torch.Tensor, available: torch.Tensor | None) -> torch.Tensor:
    """[E] bool: the available experts that remain; all of them if none would."""
    if available is None:
        return stays
    left = stays & available
    return left | (available & ~left.any())


def _shared(draw: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, granularity: int) -> torch.Tensor:
    """Samples of the shape of `like` [T, E], the same for the experts of one group."""
    if granularity == 1:
        return draw(torch.empty_like(like, requires_grad=False))
    groups = torch.empty_like(like[:, ::granularity], requires_grad=False)
    return draw(groups).repeat_interleave(granularity, dim=-1)


def _qwen(router: Any) -> GateSpec:
    return GateSpec(router.num_experts, router.top_k, renormalise=getattr(router, "norm_topk_prob", True))


def _mixtral(router: Any) -> GateSpec:
    return GateSpec(router.num_experts, router.top_k, weights_like="scores")


def _granite(router: Any) -> GateSpec:
    return GateSpec(router.num_experts, router.top_k, over_chosen=True, fp32_output=True, weights_like="input")


def _cohere(router: Any) -> GateSpec:
    if router.expert_selection_fn == "softmax":
        return GateSpec(router.num_experts, router.top_k, over_chosen=True, weights_like="input")
    return GateSpec(
        router.num_experts,
        router.top_k,
        scoring="sigmoid",
        over_chosen=True,
        renormalise=router.norm_topk_prob,
        weights_like="input",
    )


def _ernie(router: Any) -> GateSpec:
    # It divides by at least 1e-12, which no sum of chosen probabilities is below.
    return GateSpec(router.num_experts, router.top_k, fp32_logits=True, no_autocast=True, weights_like="input")


def _hunyuan(router: Any) -> GateSpec:
    return GateSpec(router.num_experts, router.top_k, fp32_logits=router_weight(router).dtype == torch.float32)


def _lfm2(router: Any) -> GateSpec:
    return GateSpec(
        router.num_experts,
        router.top_k,
        scoring="sigmoid",
        renormalise=router.norm_topk_prob,
        epsilon=1e-6,
        scale=router.routed_scaling_factor,
    )


def _deepseek(router: Any) -> GateSpec:
    return GateSpec(
        router.num_experts,
        router.top_k,
        scoring="sigmoid",
        renormalise=router.norm_topk_prob,
        epsilon=1e-20,
        fp32_logits=True,
        weights_like="scores",
        groups=router.num_group,
        top_groups=router.topk_group,
        scale=getattr(router, "routed_scaling_factor", 1.0),  # Beam's block applies it to the experts' sum
        ordered=False,
    )


def _beam(router: Any) -> GateSpec:
    return replace(_deepseek(router), ordered=True)


def _smolmoe(router: Any) -> GateSpec:
    return GateSpec(
        router.num_experts,
        router.top_k,
        scoring=router.scoring_func,
        renormalise=router.norm_topk_prob,
        epsilon=1e-20,
        fp32_logits=router.scoring_func == "sigmoid",
        # A checkpoint may carry an older copy of the code.
        scale=getattr(router, "routed_scaling_factor", 1.0),
        top_p=getattr(router, "top_p", None),
        capacity_factor=getattr(router, "capacity_factor", None),
    )


# Class that defines `forward` -> its spec.
_FAMILIES: dict[Callable[[Any], GateSpec], tuple[str, ...]] = {
    _qwen: (
        "FlexOlmoTopKRouter",
        "MellumTopKRouter",
        "OlmoeTopKRouter",
        "Qwen2MoeTopKRouter",
        "Qwen3MoeTopKRouter",
        "Qwen3NextTopKRouter",
        "Qwen3VLMoeTextTopKRouter",
        "Qwen3_5MoeTopKRouter",
    ),
    _mixtral: ("MiniMaxTopKRouter", "MixtralTopKRouter"),
    _granite: (
        "GraniteMoeHybridTopKRouter",
        "GraniteMoeSWATopKRouter",
        "GraniteMoeSharedTopKRouter",
        "GraniteMoeTopKRouter",
    ),
    _deepseek: (
        "DeepseekV3TopkRouter",
        "Dots1TopkRouter",
        "ExaoneMoeTopkRouter",
        "Glm4MoeLiteTopkRouter",
        "Glm4MoeTopkRouter",
        "Glm4vMoeTextTopkRouter",
        "GlmMoeDsaTopkRouter",
        "SolarOpenTopkRouter",
    ),
    _cohere: ("Cohere2MoeTopKRouter",),
    _ernie: ("Ernie4_5_MoeTopKRouter",),
    _hunyuan: ("HunYuanMoEV1Gate",),
    _lfm2: ("Lfm2MoeTopKRouter",),
    _beam: ("BeamTopKRouter",),
    _smolmoe: ("SmolMoeRouter",),
}
_SPECS = {name: family for family, names in _FAMILIES.items() for name in names}
