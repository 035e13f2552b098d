"""The chosen rows and their index, as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from smolmoe.core.json_text import json_line
from smolmoe.core.progress import Progress
from smolmoe.errors import DataError
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.duplicates import digest
from smolmoe.selection.filters import Sieve
from smolmoe.selection.pool import Pool
from smolmoe.selection.quotas import Choice
from smolmoe.selection.results import HELD_OUT, INDEX, ROWS
from smolmoe.selection.rows import Row, RowSource


def added_columns(pool: Pool) -> dict[str, str]:
    """Names for the score and the group that no row uses."""
    names = {}
    for what in ("score", "group"):
        name = f"selection_{what}"
        while name in pool.columns:
            name += "_"
        names[what] = name
    return names


def write_choice(
    recipe: SelectRecipe, sources: Sequence[RowSource], pool: Pool, choice: Choice, folder: Path, report: Progress
) -> None:
    """Read the rows again; write the chosen ones in their order, their index, and the held-out ones.

    Raises:
        DataError: a row differs from the one that was scored.
    """
    names = added_columns(pool)
    wanted = {int(pool.places[index]): int(index) for index in np.flatnonzero(choice.chosen)}
    sieve = Sieve(recipe)
    apart: set[str] = set()
    place = -1
    with (
        (folder / ROWS).open("w", encoding="utf-8") as chosen,
        (folder / INDEX).open("w", encoding="utf-8") as index,
        (folder / HELD_OUT).open("w", encoding="utf-8") as held_out,
    ):
        index.write("[")
        for place, row in enumerate(chain.from_iterable(source.rows() for source in sources)):
            text = row.string(row.text) or ""
            if place in wanted:
                at = wanted.pop(place)
                _check_same(row, digest(text), pool.digest(at))
                group = dict(zip(recipe.by, pool.groups[pool.group_ids[at]], strict=True))
                added = {names["score"]: float(pool.scores[at]), names["group"]: ", ".join(group.values()) or "all"}
                chosen.write(json_line(row.values | added))
                index.write("\n" if index.tell() == 1 else ",\n")
                index.write(json.dumps({"source": row.origin, "row": row.number, "digest": pool.digest(at)}))
            elif text.strip() and sieve.is_apart(text) and digest(text) not in apart:
                apart.add(digest(text))
                held_out.write(json_line(row.values))
            if place % 1000 == 0:
                report("Writing", place, pool.read)
        index.write("\n]\n")
    if wanted or place + 1 != pool.read:
        raise _changed(f"{pool.read} rows before, {place + 1} now")
    if not recipe.held_out:
        (folder / HELD_OUT).unlink()


def _check_same(row: Row, now: str, before: str) -> None:
    if now != before:
        raise _changed(row.place)


def _changed(where: str) -> DataError:
    return DataError("the rows changed while they were read.", field="data", value=where, fix="Select again.")
