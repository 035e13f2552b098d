"""Learning from a teacher's sparse targets, as pure functions of rows: w entries of a vocabulary each.

The divergence is KL(teacher ‖ student) with both logits divided by a temperature T. It is computed from the student's
log-probabilities at the entries alone. Multiplied by T^2 its gradient keeps its size as T changes (arXiv 1503.02531).

- Top-k with a tail: the k entries and one bucket for all other tokens, on both sides. It is at most the full
  divergence, since what lies in the bucket is compared as a whole, and equal to it for k = V.
- Sampled: shares of draws from the teacher's distribution. The full divergence and its gradient are linear in the
  teacher's probabilities, up to the entropy, which is the teacher's own and kept exactly. So the expectation over the
  draws is the full divergence, and that of the gradient the full gradient (arXiv 2503.16870).

Top-k without the tail, its mass scaled up to 1, has neither: its minimum is another distribution.
"""

from __future__ import annotations

import torch
from torch.nn.functional import log_softmax, pad

IGNORED = -100  # a label that counts for nothing
# The least log(1 / mass of the entries) of a student: below, the difference of two sums is rounding alone.
LEAST = 1e-6


def top_k_divergence(said: torch.Tensor, target: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """KL in nats over the entries and the bucket of all other tokens: [N].

    Args:
        said: the student's log-probabilities at the entries [N, k].
        target: the teacher's [N, k]. Entries and tail are scaled to sum to 1, as float16 left them near it.
        tail: log of the teacher's mass elsewhere [N], -inf where there is none.
    """
    wanted = torch.cat([target.float(), tail.float().unsqueeze(-1)], -1).log_softmax(-1)
    among = said.logsumexp(-1).clamp_max(-LEAST)
    got = torch.cat([said, torch.log(-torch.expm1(among)).unsqueeze(-1)], -1)
    share = wanted.exp()
    return (torch.where(share > 0, share * (wanted - got), 0.0)).sum(-1)


def sampled_divergence(said: torch.Tensor, shares: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of KL in nats: [N]. It may be below 0 where the divergence is small.

    Args:
        said: the student's log-probabilities at the entries [N, w].
        shares: of the draws that fell on each entry [N, w], summing to 1.
        entropy: of the teacher's distribution [N], in nats.
    """
    return -(shares.float() * said).sum(-1) - entropy.float()


def losses_of_rows(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ids: torch.Tensor,
    values: torch.Tensor,
    rest: torch.Tensor,
    *,
    sampled: bool,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and divergence of each row, in nats: [N], [N], both 0 where the label is -100.

    At temperature 1 both read one log-softmax of the logits, so that the divergence costs no pass over the vocabulary.

    Args:
        logits: the student's [N, V].
        labels: [N].
        ids: of the entries [N, w].
        values, rest: the target and tail of `top_k_divergence`, or the shares and entropy of `sampled_divergence`.
    """
    counted = labels != IGNORED
    spoken = log_softmax(logits, -1, dtype=torch.float32)
    label = labels.clamp_min(0).unsqueeze(-1)
    if temperature == 1:
        picked = spoken.gather(-1, torch.cat([label, ids.long()], -1))
        own, said = picked[:, 0], picked[:, 1:]
    else:
        own = spoken.gather(-1, label).squeeze(-1)
        said = log_softmax(logits.float() / temperature, -1).gather(-1, ids.long())
    divergence = (sampled_divergence if sampled else top_k_divergence)(said, values, rest)
    return torch.where(counted, -own, 0.0), torch.where(counted, divergence, 0.0)


def shifted(values: torch.Tensor, filling: float) -> torch.Tensor:
    """[B, S, ...] to [B * S, ...]: at each position what belongs to the next token, `filling` at the last."""
    after = pad(values[:, 1:], (0, 0) * (values.dim() - 2) + (0, 1), value=filling)
    return after.flatten(0, 1)
