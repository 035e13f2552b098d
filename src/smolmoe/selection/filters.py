"""What a row must be to be chosen from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from smolmoe.data.embedded import is_held_out
from smolmoe.data.formats import check_columns
from smolmoe.recipe.select import SelectRecipe
from smolmoe.selection.duplicates import Duplicates, digest
from smolmoe.selection.rows import Row

PROMPT = "prompt"  # the column of prompts where the recipe names none


@dataclass(frozen=True)
class Candidate:
    """What the scores see of a row."""

    text: str
    prompt: str | None


class Sieve:
    """Lets the rows through that may be chosen, and counts the others by what speaks against them.

    Lengths count characters; of texts that repeat each other the first is let through, whatever the scores would say.

    Attributes:
        dropped: reason -> rows.
        held_out: texts that were kept out for evaluation, each once.
    """

    def __init__(self, recipe: SelectRecipe):
        self._recipe = recipe
        self._seen = Duplicates(recipe.near_duplicates)
        self._apart: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.held_out = 0

    def candidate(self, row: Row) -> Candidate | None:
        """The row's texts where it may be chosen.

        Raises:
            DataError: its text or prompt is no string, or the prompt's column is not there although it was named.
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
        """Whether a text is kept out for evaluation: by its hash alone, as in training."""
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
