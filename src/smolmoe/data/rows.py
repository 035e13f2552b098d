"""Documents of a training's data as tagged rows, split into training and held-out text as in the training."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from smolmoe.core.files import replacing
from smolmoe.data.corpus import UNKNOWN_DOMAIN
from smolmoe.data.embedded import is_held_out
from smolmoe.data.sources import open_source
from smolmoe.data.text import Document
from smolmoe.recipe.data import DataRecipe, SourceRecipe


def write_rows(recipe: DataRecipe, folder: Path, *, characters: int) -> tuple[Path, Path]:
    """Write `held-out.jsonl` and `training.jsonl` with about `characters` of each domain; returns their paths.

    No text is in both, and none twice; the split is that of `load_corpus`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "held-out.jsonl", folder / "training.jsonl"
    spent: Counter[tuple[bool, str]] = Counter()
    with (
        replacing(paths[0]) as first,
        replacing(paths[1]) as second,
        first.open("w", encoding="utf-8") as held_out,
        second.open("w", encoding="utf-8") as training,
    ):
        for document, held in distinct(recipe):
            domain = document.domain or UNKNOWN_DOMAIN
            if spent[held, domain] >= characters:
                continue
            spent[held, domain] += len(document.text)
            row = json.dumps({"text": document.text, "domain": domain}) + "\n"
            (held_out if held else training).write(row)
    return paths


def distinct(
    recipe: DataRecipe, *, repeated: Callable[[Document], None] | None = None
) -> Iterator[tuple[Document, bool]]:
    """Every text once, and whether it is held out; the validation sources' first.

    Args:
        repeated: called with a document whose text was there before.
    """
    seen: set[bytes] = set()  # 16 bytes each, so that millions of documents fit in memory
    for document, held in _sides(recipe):
        digest = hashlib.sha256(document.text.encode()).digest()[:16]
        if digest not in seen:
            seen.add(digest)
            yield document, held
        elif repeated is not None:
            repeated(document)


def _sides(recipe: DataRecipe) -> Iterator[tuple[Document, bool]]:
    for document in _documents(recipe.validation):
        yield document, True
    for document in _documents(recipe.sources):
        yield document, not recipe.validation and is_held_out(document.text, recipe.held_out)


def _documents(sources: Iterable[SourceRecipe]) -> Iterator[Document]:
    for source in sources:
        yield from open_source(source).documents()
