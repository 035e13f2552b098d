"""Documents of a training's data as tagged rows, each on the side that training has it on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from smolmoe.data.corpus import UNKNOWN_DOMAIN
from smolmoe.data.embedded import is_held_out
from smolmoe.data.sources import open_source
from smolmoe.data.text import Document
from smolmoe.recipe.data import DataRecipe, SourceRecipe


def write_rows(recipe: DataRecipe, folder: Path, *, characters: int) -> tuple[Path, Path]:
    """Write `held-out.jsonl` and `training.jsonl` with about that many characters of each domain; returns their paths.

    No text is in both, and none twice: a document is on the side that `load_corpus` puts it on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out, training = folder / "held-out.jsonl", folder / "training.jsonl"
    if recipe.validation:
        held = {document.text for document in _documents(recipe.validation)}
        _write(held_out, _documents(recipe.validation), characters)
        rest = (document for document in _documents(recipe.sources) if document.text not in held)
    else:
        share = recipe.held_out
        _write(held_out, (d for d in _documents(recipe.sources) if is_held_out(d.text, share)), characters)
        rest = (document for document in _documents(recipe.sources) if not is_held_out(document.text, share))
    _write(training, rest, characters)
    return held_out, training


def _documents(sources: Iterable[SourceRecipe]) -> Iterator[Document]:
    for source in sources:
        yield from open_source(source).documents()


def _write(path: Path, documents: Iterable[Document], characters: int) -> None:
    spent: Counter[str] = Counter()
    seen: set[str] = set()
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            domain = document.domain or UNKNOWN_DOMAIN
            if document.text in seen or spent[domain] >= characters:
                continue
            seen.add(document.text)
            spent[domain] += len(document.text)
            file.write(json.dumps({"text": document.text, "domain": domain}) + "\n")
