"""How much the choice of experts depends on the domain: divergence, information, contrast, and chance baselines.

Counts are [..., D, E]: D domains, E experts. Domains have equal weight, whatever the amount of text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from smolmoe.recipe.probe import DRAWS
from smolmoe.results.probe import Baseline, CellChance

FLOOR = 0.01  # lower bound of the denominator, so that a few choices do not decide
FEWEST = 50  # fewest choices of a domain within one token type that count


def shares(counts: torch.Tensor) -> torch.Tensor:
    """Counts divided by their sum over the last dimension, float64; zeros for a sum of 0."""
    counts = counts.double()
    return counts / counts.sum(-1, keepdim=True).clamp_min(1)


def separation(counts: torch.Tensor) -> torch.Tensor:
    """[..., D, E] to [...]: mean over pairs of domains of the Jensen-Shannon divergence of their choices, in bits.

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2: 0 for equal distributions, 1 for disjoint ones, whatever D and E.
    """
    pairs = _divergences(shares(counts))
    domains = counts.shape[-2]
    return pairs.sum((-2, -1)) / (domains * (domains - 1))


def domain_information(counts: torch.Tensor) -> torch.Tensor:
    """[..., D, E] to [...]: mutual information of domain and choice, in bits; at most log2 of the smaller of D and E.

    With equally weighted domains it is the generalised Jensen-Shannon divergence of their distributions.
    """
    p = shares(counts)
    return (_entropy(p.mean(-2)) - _entropy(p).mean(-1)).clamp_min(0)


def contrast(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest ratio between two domains' shares of one expert: (ratio, expert, higher domain, lower domain).

    Only an expert with at least the even share 1/E of some domain counts, and the lower share is at least 0.01: the
    expert is in use, and the ratio is at most 100.

    Args:
        counts: [..., D, E].

    Returns:
        Four tensors [...].
    """
    p = shares(counts)
    (high, of_high), (low, of_low) = p.max(-2), p.min(-2)
    ratio = torch.where(high >= (1 - 1e-9) / p.shape[-1], high / low.clamp_min(FLOOR), 0)
    value, expert = ratio.max(-1)
    at = expert[..., None]
    return value, expert, of_high.gather(-1, at)[..., 0], of_low.gather(-1, at)[..., 0]


def within_type_separation(counts: torch.Tensor) -> torch.Tensor:
    """[..., D, Y, E] to [...]: `separation` of pairs of domains within one token type, mean over pairs and types.

    A pair is weighted by the two domains' mean share of the type, and counts only if both have 50 choices of it. If
    types alone explain the difference of domains, this is about 0 up to sampling noise, and `separation` is not.
    """
    by_type = counts.transpose(-3, -2)  # [..., Y, D, E]
    totals = by_type.sum(-1)
    parts = totals / totals.sum(-2, keepdim=True).clamp_min(1)
    enough = totals >= FEWEST
    weight = (parts[..., :, None] + parts[..., None, :]) * (enough[..., :, None] & enough[..., None, :])
    weight = weight * (1 - torch.eye(counts.shape[-3], device=counts.device))
    divergence = (_divergences(shares(by_type)) * weight).sum((-3, -2, -1))
    return divergence / weight.sum((-3, -2, -1)).clamp_min(1e-30)


def type_information(counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Information of token type and domain about the choice, alone and given the other, in bits.

    Args:
        counts: [..., D, Y, E].

    Returns:
        `type`: I(type; expert); `domain_within_type`: I(domain; expert | type); `type_within_domain`: the reverse.
    """
    p = shares(counts.flatten(-2)).unflatten(-1, counts.shape[-2:]) / counts.shape[-3]
    joint, domain_type = _joint_entropy(p, ()), _joint_entropy(p, (-1,))
    type_expert, domain_expert = _joint_entropy(p, (-3,)), _joint_entropy(p, (-2,))
    of_type, of_expert = _joint_entropy(p, (-3, -1)), _joint_entropy(p, (-3, -2))
    of_domain = _joint_entropy(p, (-2, -1))
    found = {
        "type": of_type + of_expert - type_expert,
        "domain_within_type": domain_type + type_expert - joint - of_type,
        "type_within_domain": domain_type + domain_expert - joint - of_domain,
    }
    return {name: value.clamp_min(0) for name, value in found.items()}


def permutation_baselines(
    choices: torch.Tensor, first: torch.Tensor, labels: Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> Mapping[str, list[Baseline]]:
    """Separation, information and contrast with the domains shuffled over the documents.

    Documents are shuffled, not tokens: the tokens of a text are similar, so that with shuffled tokens everything would
    be significant. The baseline is higher with few or short documents.

    Args:
        choices, first: of N documents, [N, L, E].
        labels: domain index of each document.

    Returns:
        "separation", "information", "contrast" -> a baseline for each layer.
    """
    found: dict[str, list[torch.Tensor]] = {"separation": [], "information": [], "contrast": []}
    both = torch.stack([choices, first]).double()
    for counts in _shuffled(both, torch.tensor(labels), draws, seed):
        found["separation"].append(separation(counts[0]))
        found["information"].append(domain_information(counts[1]))
        found["contrast"].append(contrast(counts[0])[0])
    return {name: _baselines(torch.stack(values)) for name, values in found.items()}


def cell_chance(choices: torch.Tensor, labels: Sequence[int], *, draws: int = DRAWS, seed: int = 0) -> CellChance:
    """The range of each expert's share of a domain with the domains shuffled over the documents.

    All cells of all layers are in their ranges at once in 95% of the shuffles, so that a cell beyond its range is a
    finding however many cells there are: the range is the mean plus and minus q standard deviations, and q the 95th
    percentile of the largest deviation of any cell, in its standard deviations.

    Args:
        choices: of N documents, [N, L, E].
        labels: domain index of each document.
    """
    shuffles = _shuffled(choices.double()[None], torch.tensor(labels), draws, seed)
    found = torch.stack([shares(counts[0]) for counts in shuffles])  # [draws, L, D, E]
    mean, std = found.mean(0), found.std(0, correction=0).clamp_min(1e-9)
    widest = ((found - mean).abs() / std).flatten(1).amax(1).quantile(0.95)
    return CellChance((mean - widest * std).clamp_min(0).tolist(), (mean + widest * std).clamp_max(1).tolist())


def _shuffled(counts: torch.Tensor, labels: torch.Tensor, draws: int, seed: int) -> Iterator[torch.Tensor]:
    """Sums [S, L, D, E] of the counts [S, N, L, E] under shuffled labels."""
    generator = torch.Generator().manual_seed(seed)
    member = torch.nn.functional.one_hot(labels).double()  # [N, D]
    for _ in range(draws):
        order = torch.randperm(len(labels), generator=generator)
        yield torch.einsum("nd,snle->slde", member[order], counts)


def _baselines(values: torch.Tensor) -> list[Baseline]:
    """Of each layer, from [draws, L]."""
    mean, high = values.mean(0).tolist(), values.quantile(0.95, dim=0).tolist()
    return [Baseline(*pair) for pair in zip(mean, high, strict=True)]


def _divergences(p: torch.Tensor) -> torch.Tensor:
    """[..., D, E] distributions to [..., D, D] Jensen-Shannon divergences in bits."""
    own = _entropy(p)
    mixed = _entropy((p[..., :, None, :] + p[..., None, :, :]) / 2)
    # Equal distributions differ by rounding alone.
    return (mixed - (own[..., :, None] + own[..., None, :]) / 2).clamp_min(0)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p).sum(-1) / math.log(2)


def _joint_entropy(p: torch.Tensor, without: tuple[int, ...]) -> torch.Tensor:
    """Of p [..., D, Y, E], some of the three dimensions summed out, in bits."""
    kept = p.sum(without, keepdim=True) if without else p
    return _entropy(kept.flatten(-3))
