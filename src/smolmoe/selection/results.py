"""The result of a selection: chosen rows, candidates and shortfalls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.entropy import Floats
from smolmoe.selection.pool import Pool
from smolmoe.selection.quotas import Choice

SCHEMA_VERSION = 1
ROWS, HELD_OUT, INDEX, REPORT = "rows.jsonl", "held-out.jsonl", "indices.json", "report.json"
WRITTEN = (ROWS, HELD_OUT, INDEX, REPORT, "tokenizer")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class GroupResult:
    """One group; `supply`, `quota`, `chosen`, `filled` and `shortfall` in the unit of the budget.

    Attributes:
        values: of the grouping columns.
        rows, chosen_rows: candidates, and chosen ones.
        filled: amount chosen beyond the quota, in place of groups with too little supply.
        shortfall: quota minus supply, if positive.
        scores, chosen_scores: quantiles, "0" to "1"; None if there are no rows.
    """

    values: Mapping[str, str]
    rows: int
    chosen_rows: int
    supply: int
    quota: int
    chosen: int
    filled: int
    shortfall: int
    scores: Mapping[str, float] | None
    chosen_scores: Mapping[str, float] | None

    @property
    def label(self) -> str:
        return ", ".join(value or "(empty)" for value in self.values.values()) or "all"


@dataclass(frozen=True)
class Selection:
    """A selection of rows, as in `report.json`.

    Attributes:
        out: its folder.
        recipe: the request.
        inputs: label, identity (with hashes) and files of each source.
        tokenizer, model: hashes; None if none was used.
        columns: of the chosen rows: "text", and the added "score" and "group".
        read: number of rows read.
        dropped: reason -> rows that are not candidates.
        held_out: texts held out for evaluation.
        rows: number of chosen rows.
        tokens: in the chosen rows; None if no tokenizer was used.
        total: chosen rows or tokens, in the unit of the budget.
        shortfall: budget minus total: all was taken, or the next row did not fit.
        length_correlation: Spearman's, of score and length, over all candidates.
        chosen_length: mean length of the chosen rows, relative to the mean lengths of their groups.
        groups: in order of first appearance.
    """

    out: Path
    recipe: Mapping[str, Any]
    inputs: tuple[Mapping[str, Any], ...]
    tokenizer: str | None
    model: str | None
    columns: Mapping[str, str]
    read: int
    dropped: Mapping[str, int]
    held_out: int
    rows: int
    tokens: int | None
    total: int
    shortfall: int
    length_correlation: float
    chosen_length: float
    groups: tuple[GroupResult, ...]

    @property
    def path(self) -> Path:
        """The chosen rows, a source for training."""
        return self.out / ROWS

    @property
    def empty_groups(self) -> tuple[str, ...]:
        """Groups without candidates; they have no quota."""
        return tuple(group.label for group in self.groups if group.rows == 0)

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "out": str(self.out), "path": str(self.path)}


def quantiles(scores: Floats) -> dict[str, float] | None:
    """The quantiles of scores; None without scores."""
    if len(scores) == 0:
        return None
    return {f"{share:g}": float(value) for share, value in zip(QUANTILES, np.quantile(scores, QUANTILES), strict=True)}


def group_results(recipe: SelectRecipe, pool: Pool, choice: Choice) -> tuple[GroupResult, ...]:
    """The outcome for each group of the pool."""
    costs = pool.costs(recipe)
    found = []
    for number, values in enumerate(pool.groups):
        mine = pool.group_ids == number
        taken = mine & choice.chosen
        supply, quota = int(costs[mine].sum()), int(choice.quotas[number])
        found.append(
            GroupResult(
                values=dict(zip(recipe.by, values, strict=True)),
                rows=int(mine.sum()),
                chosen_rows=int(taken.sum()),
                supply=supply,
                quota=quota,
                chosen=int(costs[taken].sum()),
                filled=int(costs[mine & choice.filled].sum()),
                shortfall=max(0, quota - supply),
                scores=quantiles(pool.scores[mine]),
                chosen_scores=quantiles(pool.scores[taken]),
            )
        )
    return tuple(found)


def relative_length(pool: Pool, choice: Choice) -> float:
    """Mean length of the chosen rows, relative to the mean lengths of their groups; 0 without rows."""
    chosen = choice.chosen
    groups = len(pool.groups)
    rows = np.maximum(np.bincount(pool.group_ids, minlength=groups), 1)
    means = np.bincount(pool.group_ids, weights=pool.sizes, minlength=groups) / rows
    expected = float(means[pool.group_ids[chosen]].sum())
    return float(pool.sizes[chosen].sum()) / expected if expected else 0.0
