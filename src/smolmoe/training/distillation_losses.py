"""Losses on a teacher's sparse targets, as pure functions of rows with w entries of the vocabulary each.

The divergence is KL(teacher ‖ student) with both logits divided by a temperature T. It is computed from the student's
log-probabilities at the entries alone. Multiplied by T^2 its gradient keeps its size as T changes (arXiv 1503.02531).

- Top-k with a tail: the k entries and one bucket for all other tokens, on both sides. It is at most the full
  divergence, since the bucket is compared as one entry, and equal to it for k = V.
- Sampled: shares of samples from the teacher's distribution. The full divergence and its gradient are linear in the
  teacher's probabilities, except for the teacher's entropy, which is stored exactly. So the expectation over the
  samples is the full divergence, and that of the gradient the full gradient (arXiv 2503.16870).

Top-k without the tail, rescaled to a mass of 1, has neither property: its minimum is another distribution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import log_softmax, pad

IGNORED = -100  # the label of tokens without a loss
# Minimum of a student's log(1 / mass of the entries): below it, the difference of two sums is only rounding.
LEAST = 1e-6
AT_ONCE = 2**17  # logits: half a megabyte


def top_k_divergence(said: torch.Tensor, target: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """KL in nats over the entries and the bucket of all other tokens: [N].

    Args:
        said: the student's log-probabilities at the entries [N, k].
        target: the teacher's [N, k]. Entries and tail are scaled to sum to 1, as float16 left them near it.
        tail: log of the teacher's remaining mass [N], -inf if it is zero.
    """
    wanted = torch.cat([target.float(), tail.float().unsqueeze(-1)], -1).log_softmax(-1)
    among = said.logsumexp(-1).clamp_max(-LEAST)
    got = torch.cat([said, torch.log(-torch.expm1(among)).unsqueeze(-1)], -1)
    share = wanted.exp()
    return (torch.where(share > 0, share * (wanted - got), 0.0)).sum(-1)


def sampled_divergence(said: torch.Tensor, shares: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """An unbiased estimate of KL in nats: [N]. It may be below 0 if the divergence is small.

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
    """Cross-entropy and divergence of each row, in nats: [N], [N], both 0 if the label is -100.

    Args:
        logits: the student's [N, V].
        labels: [N].
        ids: of the entries [N, w].
        values, rest: the target and tail of `top_k_divergence`, or the shares and entropy of `sampled_divergence`.
    """
    counted = labels != IGNORED
    label = labels.clamp_min(0).unsqueeze(-1)
    picked: torch.Tensor = _Picked.apply(logits, label, ids.long(), temperature)
    own, said = picked[:, 0], picked[:, 1:]
    divergence = (sampled_divergence if sampled else top_k_divergence)(said, values, rest)
    return torch.where(counted, -own, 0.0), torch.where(counted, divergence, 0.0)


class _Picked(torch.autograd.Function):
    """Log-probabilities of a label at temperature 1 and of entries at T: [N, 1 + w] in fp32.

    It processes a few rows at a time, so that the only tensor of the logits' size is one gradient, the sum of the
    label's and the entries'.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, label: torch.Tensor, ids: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        picked = logits.new_empty(len(logits), 1 + ids.shape[1], dtype=torch.float32)
        constants = logits.new_empty(2, len(logits), 1, dtype=torch.float32)  # log of each row's sum, at 1 and at T
        for rows in _parts(logits):
            part = logits[rows].float()
            spoken = log_softmax(part, -1)
            constants[0, rows] = part[:, :1] - spoken[:, :1]
            picked[rows, :1] = spoken.gather(-1, label[rows])
            if temperature != 1:
                part = part / temperature
                spoken = log_softmax(part, -1)
                constants[1, rows] = part[:, :1] - spoken[:, :1]
            picked[rows, 1:] = spoken.gather(-1, ids[rows])
        ctx.save_for_backward(logits, label, ids, constants)
        ctx.temperature = temperature
        return picked

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, label, ids, constants = ctx.saved_tensors
        own, said = gradients[0][:, :1], gradients[0][:, 1:] / ctx.temperature
        total = said.sum(-1, keepdim=True)
        found = torch.empty_like(logits)
        for rows in _parts(logits):
            part = logits[rows].float()
            shares = (part - constants[0, rows]).exp_()
            if ctx.temperature == 1:
                grad = shares.mul_(-own[rows] - total[rows])
            else:
                grad = (part / ctx.temperature).sub_(constants[1, rows]).exp_().mul_(-total[rows])
                grad.addcmul_(shares, own[rows], value=-1)
            grad.scatter_add_(-1, label[rows], own[rows]).scatter_add_(-1, ids[rows], said[rows])
            found[rows] = grad
        return found, None, None, None


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    """Rows that fit into a CPU cache together; all rows at once on other devices."""
    count = len(logits) if logits.device.type != "cpu" else max(1, AT_ONCE // logits.shape[1])
    return (slice(first, first + count) for first in range(0, len(logits), max(1, count)))


def shifted(values: torch.Tensor, filling: float) -> torch.Tensor:
    """[B, S, ...] to [B * S, ...]: at each position the value of the next token, `filling` at the last."""
    after = pad(values[:, 1:], (0, 0) * (values.dim() - 2) + (0, 1), value=filling)
    return after.flatten(0, 1)
