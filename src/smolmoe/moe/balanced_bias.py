"""Loss-free balancing offline: selection biases for an even load, found on the router logits of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from smolmoe.moe.balance import count_choices, max_violation
from smolmoe.moe.gating import GateSpec, choose, router_scores

TARGET = 0.05  # MaxVio of a load that counts as even
UPDATES = 300  # at most; logits of several units of spread under a softmax may need more


@dataclass(frozen=True)
class BalancedBias:
    """What a search for an even load found.

    Attributes:
        bias: [E], with the same mean as before.
        before, after: MaxVio on these tokens, see `max_violation`.
        updates: number of updates tried.
        same_for_all: every token scores the experts alike, so a bias only moves all tokens together.
    """

    bias: torch.Tensor
    before: float
    after: float
    updates: int
    same_for_all: bool


@torch.no_grad()
def find_balanced_bias(
    logits: torch.Tensor, bias: torch.Tensor, spec: GateSpec, *, target: float = TARGET
) -> BalancedBias:
    """The bias with which these tokens load the experts evenly: the update of arXiv 2408.15664, repeated.

    Each expert has its own step, which begins at the spread of the scores, is halved when the sign of the load's error
    changes, and grows by a fifth while it does not (Rprop, Riedmiller and Braun 1993). The best bias counts.

    Args:
        logits: [T, E], recorded without noise.
        bias: [E], to begin with.
        spec: of the router.
        target: MaxVio to stop at.
    """
    scores = router_scores(logits, spec).float()
    relative = scores - scores.mean(-1, keepdim=True)
    first = current = best = bias.detach().float()
    load = _load(logits, current, spec)
    before = found = max_violation(load).item()
    if bool((relative.std(0, correction=0) <= torch.finfo(scores.dtype).eps).all()):
        return BalancedBias(first, before, before, 0, same_for_all=True)
    step, last, updates = relative.std().expand(spec.experts), torch.zeros_like(first), 0
    while found > target and updates < UPDATES:
        error = torch.sign(load.mean() - load)
        step = torch.where(error * last < 0, step / 2, torch.where(error * last > 0, step * 1.2, step))
        current, last, updates = current + step * error, error, updates + 1
        load = _load(logits, current, spec)
        violation = max_violation(load).item()
        if violation < found:
            best, found = current, violation
    best = best - (best - first).mean()
    return BalancedBias(best, before, max_violation(_load(logits, best, spec)).item(), updates, same_for_all=False)


def _load(logits: torch.Tensor, bias: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    """[E], choices of each expert."""
    gates, chosen = choose(logits, bias, spec)
    return count_choices(chosen, gates, spec.experts).float()
