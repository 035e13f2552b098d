"""Sparse distributions over the vocabulary: their largest entries, or samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entries:
    """m entries of M rows, row by row.

    Attributes:
        rows, ids: int64 [m], the row and the token of each entry.
        values: [m], log-probabilities float16, or counts of samples int64.
        rest: float16 [M], log of the remaining mass, or the entropy in nats.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor


def largest(log_probabilities: torch.Tensor, k: int) -> Entries:
    """The k largest of each row [M, V], and the mass of all others, as a sum and not as the difference from 1."""
    values, ids = log_probabilities.topk(k, dim=-1)
    others = log_probabilities.scatter(-1, ids, float("-inf")).logsumexp(-1)
    rows = torch.arange(len(ids), device=ids.device).repeat_interleave(k)
    return Entries(rows, ids.flatten(), values.flatten().half(), others.half())


def drawn(log_probabilities: torch.Tensor, draws: int, uniforms: torch.Tensor) -> Entries:
    """Tokens sampled from each row's distribution [M, V], with their counts.

    All samples of a row follow from one uniform number u, at (u + i) / draws of the cumulated probabilities. A token's
    expected share is its probability, as with independent samples (arXiv 2503.16870), and its count differs by less
    than 1 from draws times the probability, which makes the shares less noisy.

    Args:
        uniforms: float64 [M] in [0, 1).
    """
    exact = torch.float32 if log_probabilities.device.type == "mps" else torch.float64
    probabilities = log_probabilities.to(exact).exp()
    cumulated = probabilities.cumsum(-1)
    places = torch.arange(draws, device=cumulated.device, dtype=exact) + uniforms.to(cumulated).unsqueeze(-1)
    ids = torch.searchsorted(cumulated, places / draws * cumulated[:, -1:], right=True)
    # Rounding may give an index behind the last token with a probability.
    last = (probabilities > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    ids = torch.minimum(ids, last)
    width = log_probabilities.shape[-1]
    keys = ids + width * torch.arange(len(ids), device=ids.device).unsqueeze(-1)
    keys, counts = torch.unique_consecutive(keys.flatten(), return_counts=True)
    entropy = torch.special.entr(probabilities).sum(-1)
    return Entries(keys // width, keys % width, counts, entropy.half())
