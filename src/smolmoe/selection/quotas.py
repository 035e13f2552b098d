"""The number of rows or tokens taken from each group, and the choice of these rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Rows chosen from N candidates in G groups.

    Attributes:
        chosen: bool [N].
        filled: chosen beyond its group's quota, in place of a group with too little supply: bool [N].
        quotas: of each group, in rows or tokens: int64 [G].
    """

    chosen: NDArray[np.bool_]
    filled: NDArray[np.bool_]
    quotas: Ints


def even_quotas(total: int, supply: Ints) -> Ints:
    """total//G for each of the G non-empty groups; the remainder goes, one each, to the largest groups.

    A quota may exceed its group's supply: the difference is a shortfall. Equal groups keep their order.
    """
    quotas = np.zeros(len(supply), dtype=np.int64)
    there = np.flatnonzero(supply)
    if len(there) == 0:
        return quotas
    quotas[there] = total // len(there)
    largest = there[np.argsort(-supply[there], kind="stable")]
    quotas[largest[: total % len(there)]] += 1
    return quotas


def proportional_quotas(total: int, supply: Ints) -> Ints:
    """Each group's share of the supply, in whole numbers by the largest remainder; their sum is `total`, or all."""
    there = int(supply.sum())
    if total >= there:
        return supply.astype(np.int64).copy()
    whole = [int(part) * total // there for part in supply]  # Python's integers: the products may be large
    remainders = np.array([int(part) * total % there for part in supply], dtype=object)
    quotas = np.array(whole, dtype=np.int64)
    largest = np.argsort(-remainders, kind="stable")
    quotas[largest[: total - int(quotas.sum())]] += 1
    return quotas


def preference(scores: Floats, groups: Ints, prefer: str) -> Floats:
    """The preference for each candidate [N]; the most wanted has the highest value.

    Args:
        prefer: "high" or "low" scores, or "middle": those next to their group's median, by rank.
    """
    if prefer != "middle":
        return scores if prefer == "high" else -scores
    wanted = np.zeros(len(scores))
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        ranks = np.empty(len(mine))
        ranks[np.argsort(scores[mine], kind="stable")] = (np.arange(len(mine)) + 0.5) / len(mine)
        wanted[mine] = -np.abs(ranks - 0.5)
    return wanted


def choose(wanted: Floats, groups: Ints, sizes: Ints, budget: int, quota: str, count: int) -> Choice:
    """The most wanted candidates of each group up to its quota; shortfalls are filled from all remaining candidates.

    No quota is exceeded: a candidate that would exceed it is skipped for the next that fits. Of equally wanted ones the
    first is taken.

    Args:
        wanted: as `preference` returns it.
        sizes: what each candidate takes of the budget: 1, or its tokens.
        quota: "even_then_fill" or "proportional".
        count: G.
    """
    supply = np.bincount(groups, weights=sizes, minlength=count).astype(np.int64)
    quotas = (proportional_quotas if quota == "proportional" else even_quotas)(budget, supply)
    order = np.argsort(-wanted, kind="stable")
    chosen = np.zeros(len(wanted), dtype=bool)
    for group in range(count):
        _take(order[groups[order] == group], sizes, int(quotas[group]), chosen)
    before = chosen.copy()
    shortfall = int(np.maximum(quotas - supply, 0).sum())
    _take(order[~chosen[order]], sizes, shortfall, chosen)
    return Choice(chosen, chosen & ~before, quotas)


def _take(order: Ints, sizes: Ints, room: int, chosen: NDArray[np.bool_]) -> None:
    for index in order:
        if room <= 0:
            return
        if sizes[index] <= room:
            chosen[index] = True
            room -= int(sizes[index])


def rank_correlation(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Spearman's correlation of the ranks; 0 if all values of either are equal."""
    from scipy.stats import spearmanr

    if min(len(np.unique(a)), len(np.unique(b))) < 2:
        return 0.0
    return float(spearmanr(a, b).statistic)
