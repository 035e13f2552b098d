"""Whether models were trained on the text that they are compared on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from smolmoe.data.embedded import is_held_out
from smolmoe.data.presets import EMBEDDED
from smolmoe.data.sources import Source, open_source
from smolmoe.data.tally import Tally
from smolmoe.errors import SmolmoeError
from smolmoe.evaluation.compare.lineage import TrainingText
from smolmoe.evaluation.compare.text import JudgedText, nearby
from smolmoe.recipe.data import DataRecipe, SourceRecipe
from smolmoe.results.comparison import Leak

OnText = Callable[[str], None]


class LeakSearch:
    """Searches the training text of checkpoints for the held-out documents; each training text is read once.

    A document is found if its whole text is the same. Documents that a run held out by its rule are not counted.
    """

    def __init__(self, text: JudgedText, on_text: OnText | None = None):
        self._text = text
        self._judged = frozenset(text.documents)
        self._on_text = on_text
        self._known: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}

    def leak(self, texts: Sequence[TrainingText] | None) -> Leak:
        """The leak of a checkpoint with its ancestors.

        Args:
            texts: their training texts; None if not on record.
        """
        if texts is None:
            return Leak(0, 0, None)
        leaked: set[str] = set()
        unchecked: list[str] = []
        for text in texts:
            found, unread = self._search(text)
            leaked |= found
            unchecked += unread
        judged = zip(self._text.documents, self._text.base_ids, strict=True)
        tokens = sum(len(ids) for document, ids in judged if document in leaked)
        return Leak(len(leaked), tokens, tuple(dict.fromkeys(unchecked)))

    def _search(self, text: TrainingText) -> tuple[frozenset[str], tuple[str, ...]]:
        if text.recipe is None:
            return frozenset(), (text.label,)
        places = [
            str(nearby(source.path or "", text.near)) for source in (*text.recipe.sources, *text.recipe.validation)
        ]
        asked = text.recipe.model_dump(mode="json", include={"sources", "validation", "held_out"})
        key = json.dumps([asked, places])
        if key not in self._known:
            if self._on_text is not None:
                self._on_text(text.label)
            self._known[key] = self._read(text, text.recipe)
        return self._known[key]

    def _read(self, text: TrainingText, recipe: DataRecipe) -> tuple[frozenset[str], tuple[str, ...]]:
        held, unread = self._met(recipe.validation, text)
        found, unread_too = self._met(recipe.sources, text)
        if not recipe.validation:
            held = {document for document in found if is_held_out(document, recipe.held_out)}
        return frozenset(found - held), (*unread, *unread_too)

    def _met(self, sources: Iterable[SourceRecipe], text: TrainingText) -> tuple[set[str], tuple[str, ...]]:
        """The held-out documents in these sources, and the sources that cannot be read here."""
        met: set[str] = set()
        unread = []
        for recipe in sources:
            try:
                source = _open(recipe, text)
                if source is None:
                    unread.append(recipe.path or recipe.preset or "")
                    continue
                met.update(document.text for document in source.documents(Tally()) if document.text in self._judged)
            except SmolmoeError as error:
                unread.append(f"{recipe.path or recipe.preset} ({error.message})")
        return met, tuple(unread)


def _open(recipe: SourceRecipe, text: TrainingText) -> Source | None:
    """None for a source on the hub or one that no longer exists: nothing is downloaded for the search."""
    if recipe.preset == EMBEDDED:
        return open_source(recipe, quiet=True)
    found = None if recipe.path is None else nearby(recipe.path, text.near)
    return None if found is None else open_source(recipe.model_copy(update={"path": str(found)}), quiet=True)
