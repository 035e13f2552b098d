"""Additional loss terms, as pure functions of one layer's router logits [T, E].

Layers may be stacked, [L, T, E]: each has its own value, [L], and all together cost as few kernels as one.

Load balance over a whole optimiser step. The loss of a step is E * sum_e f_e * P_e, where f is the load and P the mean
probability over all tokens of all micro-batches and ranks. The load has no gradient, so the loss is a sum over tokens
and may be taken in parts, as long as every part sees the same f:

- Micro-batches j = 1..n on ranks r = 1..R, with T_jr tokens, choices c_jr [E] and mean probabilities P_jr [E].
- Counts c_j = sum_r c_jr, and the running load f_j = sum_{i<=j} c_i / sum_e sum_{i<=j} c_ie: what is known at j.
- The term of rank r at j: E * sum_e f_je * P_jr,e, times its share of tokens T_jr * R / sum_{i,s} T_is. The factor R is
  there since DDP takes the mean of the ranks' gradients.

Across ranks this is exact: the mean over ranks is the gradient of the loss of all their tokens. Within accumulation the
last micro-batch sees the step's load and the earlier ones a running estimate of it, the best there is before the later
tokens are routed (arXiv 2501.11873); with n = 1 nothing is estimated. `LoadCounter` keeps the counts.

`ROUTER_LOSSES` lists what a recipe can add. Recipes read it, so this module imports torch only inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Reduce = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class RoutedTokens:
    """What the routers of all MoE layers say of the tokens of one micro-batch.

    Attributes:
        logits: [L, T, E], with their graph.
        load: [L, Dm, E] shares or counts of each domain's choices; one domain without guidance.
        scoring: softmax or sigmoid.
        allowed: [Dm, E] bool, the experts of each domain; None without guidance.
        domain_ids: [T]; None without guidance.
    """

    logits: torch.Tensor
    load: torch.Tensor
    scoring: str
    allowed: torch.Tensor | None = None
    domain_ids: torch.Tensor | None = None


@dataclass(frozen=True)
class RouterLoss:
    """A loss on the routers that a recipe can add.

    Attributes:
        name: of its weight in `objective`, and of its values in `metrics.jsonl`.
        label: in figures.
        description: of its weight.
        value: [L], before the weight.
        balances: it moves the experts' loads towards each other.
    """

    name: str
    label: str
    description: str
    value: Callable[[RoutedTokens], torch.Tensor]
    balances: bool = False


def expert_probabilities(logits: torch.Tensor, scoring: str = "softmax") -> torch.Tensor:
    """[..., E] logits to [..., E] probabilities in fp32, rows summing to 1: softmax, or sigmoid scores over their sum.

    The latter is what arXiv 2412.19437 balances. 1/E each for equal logits; one of them 1 at collapse.
    """
    import torch

    logits = logits.float()
    if scoring == "sigmoid":
        logits = torch.nn.functional.logsigmoid(logits)  # exp of it over the sum: no 0/0 where all scores underflow
    return logits.softmax(-1)


def load_balance(probabilities: torch.Tensor, load: torch.Tensor) -> torch.Tensor:
    """E * sum_e load_e * mean_t P_te of a layer (Switch Transformer, arXiv 2101.03961): a scalar, or [L].

    1 at perfect balance; at collapse E for top-1, E/K where all tokens choose the same K experts and give them all
    probability.

    Args:
        probabilities: [T, E] or [L, T, E], rows summing to 1.
        load: [E] or [L, E], each expert's share of the choices, summing to 1; may count more tokens than these T
            (other ranks, earlier micro-batches). No gradient flows into it.
    """
    return probabilities.shape[-1] * (load.detach().to(probabilities) * probabilities.mean(-2)).sum(-1)


def z_loss(logits: torch.Tensor, scoring: str = "softmax") -> torch.Tensor:
    """Mean over tokens of logsumexp(logits)^2 of a layer (ST-MoE, arXiv 2202.08906): a scalar, or [L].

    It keeps logits small and knows nothing of balance: (ln E)^2 for logits of 0, about l^2 at collapse onto a logit l.
    Under sigmoids it is the mean of logit^2 over tokens and experts, 0 for logits of 0 and l^2 / E at collapse: there a
    common shift of the logits moves every gate, and logsumexp would push all of them towards 0.
    """
    if scoring == "sigmoid":
        return logits.float().square().mean((-2, -1))
    return logits.float().logsumexp(-1).square().mean(-1)


def guidance_target(members: torch.Tensor, free: torch.Tensor, floor: float) -> torch.Tensor:
    """The router's target for a token of each domain: [Dm, E], rows summing to 1, 0 for free experts.

    Experts of another domain, or of none, get `floor`; a domain's own share the rest alike.

    Args:
        members: [Dm, E] bool, the experts of each domain.
        free: [E] bool, experts not covered by guidance.
        floor: probability of each expert that is not the token's domain's.
    """
    import torch

    off = ~members & ~free
    own = (1 - floor * off.sum(-1, keepdim=True)) / members.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(members, own, torch.where(off, floor, 0.0)).float()


def guidance(
    logits: torch.Tensor,
    target: torch.Tensor,
    free: torch.Tensor,
    scoring: str = "softmax",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL(target ‖ router) in nats, weighted mean over the tokens of a layer: a scalar, or [L].

    0 where the router gives its experts, free ones aside, the target's shares; with one expert a domain and a small
    floor about ln E for a router that says nothing, and at most -ln of the router's least probability.

    Args:
        logits: [T, E] or [L, T, E].
        target: [T, E], a row of `guidance_target` for each token.
        free: [E] bool, experts whose probability is left out.
        weights: [T], of the tokens, 1 on average over the training; all alike by default.
    """
    import torch

    scores = logits.float() if scoring == "softmax" else torch.nn.functional.logsigmoid(logits.float())
    said = scores.masked_fill(free, float("-inf")).log_softmax(-1).masked_fill(free, 0.0)
    divergence = (torch.special.xlogy(target, target) - target * said).sum(-1)
    return (divergence if weights is None else divergence * weights).mean(-1)


def domain_load_balance(
    probabilities: torch.Tensor, load: torch.Tensor, allowed: torch.Tensor, domain_ids: torch.Tensor
) -> torch.Tensor:
    """Load balance within each domain's experts, mean over tokens: a scalar, or [L].

    For a domain of n experts it is n * sum_e load_e * mean_t P_te over its tokens, with load and probabilities taken
    among those n: 1 at perfect balance, and 1 whatever the router does where a domain has one expert. So named experts
    are not pushed to even loads over domains that have uneven shares of the text.

    Args:
        probabilities: [T, E] or [L, T, E], rows summing to 1.
        load: [Dm, E] or [L, Dm, E], shares or counts of each domain's choices. No gradient flows into it.
        allowed: [Dm, E] bool, the experts of each domain.
        domain_ids: [T].
    """
    import torch

    among = load.detach().to(probabilities) * allowed
    among = among / among.sum(-1, keepdim=True).clamp_min(torch.finfo(among.dtype).tiny)
    own = probabilities * allowed[domain_ids]
    own = own / own.sum(-1, keepdim=True).clamp_min(torch.finfo(own.dtype).tiny)
    weight = among.index_select(-2, domain_ids) * allowed.sum(-1)[domain_ids].unsqueeze(-1)
    return (weight * own).sum(-1).mean(-1)


def _balance(routed: RoutedTokens) -> torch.Tensor:
    probabilities = expert_probabilities(routed.logits, routed.scoring)
    if routed.allowed is None or routed.domain_ids is None:
        return load_balance(probabilities, routed.load[:, 0])
    return domain_load_balance(probabilities, routed.load, routed.allowed, routed.domain_ids)


ROUTER_LOSSES = (
    RouterLoss(
        "load_balance",
        "load balance",
        "weight of the load-balancing loss, 1 at perfect balance",
        value=_balance,
        balances=True,
    ),
    RouterLoss(
        "z_loss",
        "router z",
        "weight of the router z-loss",
        value=lambda routed: z_loss(routed.logits, routed.scoring),
    ),
)


def balanced_perplexity(cross_entropy: float, balance: float, beta: float = 1.0) -> float:
    """exp(CE) * exp(beta * (1 - B)), CE in nats per token and B the evenness in [0, 1], both over the same tokens.

    The plain perplexity at perfect balance (B = 1), exp(beta) times that at collapse onto one expert (B = 0).
    """
    return math.exp(cross_entropy) * math.exp(beta * (1 - balance))


class LoadCounter:
    """The running choice counts of one optimiser step, over all ranks.

        load = counter.add(counts, tokens)  # at each of n micro-batches
        term = load_balance(probabilities, load).mean() * counter.rank_share / n
        counter.reset()  # when the optimiser has stepped

    Args:
        layers: MoE layers L.
        experts: E.
        reduce: sums an int64 vector over ranks; by default an all-reduce over the default process group, if there is
            one with more than one rank.

    Attributes:
        totals: [L, E] int64, the choices of the step so far; None before the first.
        rank_share: scalar T_r * R / sum_r T_r of the last micro-batch: 1 where ranks have equally many tokens.
    """

    def __init__(self, layers: int, experts: int, reduce: Reduce | None = None):
        import torch

        self.shape = (layers, experts)
        self.totals: torch.Tensor | None = None
        self.rank_share = torch.ones(())
        self._reduce = reduce or _sum_over_ranks

    def add(self, layer_counts: torch.Tensor, tokens: int | torch.Tensor = 1) -> torch.Tensor:
        """Count one micro-batch of this rank; every rank must call it. Nothing waits for the device.

        Args:
            layer_counts: [L, E] int64, the choices of this rank.
            tokens: how many tokens made them, for `rank_share`; omit it if ranks have equally many.

        Returns:
            [L, E] fp32, the load of the step so far over all ranks, each layer summing to 1.
        """
        import torch

        own = torch.as_tensor(tokens, device=layer_counts.device, dtype=torch.int64).reshape(1)
        here = torch.cat([layer_counts.detach().long().reshape(-1), own, torch.ones_like(own)])
        everywhere = self._reduce(here)
        counts = everywhere[:-2].view(self.shape)
        self.rank_share = (own * everywhere[-1] / everywhere[-2].clamp_min(1)).reshape(()).float()
        self.totals = counts.clone() if self.totals is None else self.totals + counts
        return (self.totals / self.totals.sum(-1, keepdim=True).clamp_min(1)).float()

    def reset(self) -> None:
        """Reset the counts at the start of a new optimiser step."""
        self.totals = None


def _sum_over_ranks(vector: torch.Tensor) -> torch.Tensor:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return vector
    summed = vector.clone()
    dist.all_reduce(summed)
    return summed
