"""The filters of candidate rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from smolmoe.data.embedded import is_held_out
from smolmoe.data.formats import check_columns
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.duplicates import Duplicates, digest
from smolmoe.selection.rows import Row

PROMPT = "prompt"  # the default column of prompts


@dataclass(frozen=True)
class Candidate:
    """The texts of a row that are scored."""

    text: str
    prompt: str | None


class Sieve:
    """Selects candidate rows, and counts the others by reason.

    Lengths are in characters; of duplicates the first is a candidate, whatever its score.

    Attributes:
        dropped: reason -> rows.
        held_out: distinct texts that are held out for evaluation.
    """

    def __init__(self, recipe: SelectRecipe):
        self._recipe = recipe
        self._seen = Duplicates(recipe.near_duplicates)
        self._apart: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.held_out = 0

    def candidate(self, row: Row) -> Candidate | None:
        """The texts of a candidate row; None for other rows.

        Raises:
            DataError: its text or prompt is not a string, or the named column of the prompt is missing.
        """
        text, prompt = row.string(row.text) or "", self._prompt(row)
        if text.strip() and self.is_apart(text):
            self._apart.add(digest(text))
            self.held_out = len(self._apart)
            return None
        reason = self._unfit(text, prompt) or self._repeats(text)
        if reason is None:
            return Candidate(text, prompt)
        self.dropped[reason] += 1
        return None

    def is_apart(self, text: str) -> bool:
        """Whether a text is held out for evaluation: by its hash, as in training."""
        return self._recipe.held_out > 0 and is_held_out(text, self._recipe.held_out)

    def _prompt(self, row: Row) -> str | None:
        named = self._recipe.prompt_column
        if named is not None and not row.is_nothing:
            check_columns(tuple(row.values), (named,), "columns", row.origin, where=f"row {row.number}: ")
        return row.string(named or PROMPT)

    def _unfit(self, text: str, prompt: str | None) -> str | None:
        recipe = self._recipe
        if not text.strip():
            return "no text"
        if len(text) < recipe.min_characters:
            return "text too short"
        if recipe.max_characters is not None and len(text) > recipe.max_characters:
            return "text too long"
        if prompt is not None and len(prompt) < recipe.min_prompt_characters:
            return "prompt too short"
        return None

    def _repeats(self, text: str) -> str | None:
        found = self._seen.repeats(text)
        return None if found is None else f"{found} duplicate"
