"""The text for a teacher: sources as in a training, tokenised once into a store in the cache's folder."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.data.embedded import is_held_out
from smolmoe.data.presets import EMBEDDED, PRESETS
from smolmoe.data.sources import Source, open_source
from smolmoe.data.tokens import StoreWriter, TokenStore, encode_documents, id_type, open_store
from smolmoe.errors import CheckpointError, DataError, RequestError
from smolmoe.recipe import DataRecipe, SourceRecipe, parse
from smolmoe.recipe.files import load

STORE = "tokens"
CHUNK = 512  # documents tokenised together


@dataclass(frozen=True)
class Text:
    """Sources whose documents a teacher reads, each text once.

    Attributes:
        held_out: share of the documents that the training holds out, and that are skipped; 0 without a recipe.
        validation: sources whose texts are skipped.
    """

    sources: tuple[Source, ...]
    held_out: float = 0.0
    validation: tuple[Source, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Equal for equal documents."""
        return {
            "sources": [source.identity for source in self.sources],
            "held_out": self.held_out,
            "validation": [source.identity for source in self.validation],
        }

    @property
    def label(self) -> str:
        return ", ".join(source.label for source in self.sources)

    def texts(self) -> Iterator[str]:
        """The documents."""
        seen = {_digest(document.text) for source in self.validation for document in source.documents()}
        for source in self.sources:
            for document in source.documents():
                digest = _digest(document.text)
                if digest in seen or is_held_out(document.text, self.held_out):
                    continue
                seen.add(digest)
                yield document.text


def open_text(data: Sequence[str]) -> Text:
    """The text that DATA names: files, folders, presets, hub data sets, or the recipe of a training (YAML).

    A recipe stands for its training text: all sources, without the held-out documents.

    Raises:
        RequestError, DataError, HubError: there is no such thing.
    """
    recipes = [name for name in data if name.endswith((".yaml", ".yml"))]
    if recipes and len(data) > 1:
        raise RequestError("a recipe names all its text.", field="data", value=recipes[0], fix="Use only the recipe.")
    if recipes:
        return _of_recipe(recipes[0])
    return Text(tuple(_ended(open_source(_source(name))) for name in data))


def _of_recipe(name: str) -> Text:
    values = load(name)
    section = values.get("data") or values.get("defaults", {}).get("data")
    if section is None:
        raise RequestError("the recipe has no `data`.", field="data", value=name, fix="Use a training recipe.")
    recipe = parse(DataRecipe, section)
    sources = tuple(_ended(open_source(source)) for source in recipe.sources)
    validation = tuple(open_source(source) for source in recipe.validation)
    return Text(sources, 0.0 if validation else recipe.held_out, validation)


def _source(name: str) -> SourceRecipe:
    is_preset = (name in PRESETS or name == EMBEDDED) and not Path(name).exists()
    return SourceRecipe.model_validate({"preset" if is_preset else "path": name})


def _ended(source: Source) -> Source:
    if source.streamed and source.expected is None:
        raise DataError(
            "a streamed source is unlimited.",
            field="data",
            value=source.label,
            fix="Set `rows` in the recipe to the number of documents to take.",
        )
    return source


def write_text(text: Text, tokenizer: Any, folder: Path, report: Progress) -> None:
    """Tokenise a text into a store in `folder`, which is created only when complete.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = StoreWriter(partial / STORE, id_type(tokenizer))
    try:
        texts = text.texts()
        while chunk := list(islice(texts, CHUNK)):
            encoded = encode_documents(tokenizer, chunk)
            writer.add(encoded, [0] * len(encoded), 0)
            report("Tokenising", writer.documents, 0)
        if not writer.documents:
            raise DataError("the text has no documents.", field="data", value=text.label)
        writer.finish()
    finally:
        writer.close()
    partial.rename(folder)


def read_text(folder: Path, tokenizer: Any, *, check: bool = False) -> TokenStore:
    """The store that `write_text` wrote.

    Args:
        check: check that the tokenizer has every token.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        store = open_store(folder / STORE, id_type(tokenizer), (False,))
        if check and len(store.ids) and int(store.ids.max()) >= len(tokenizer):
            raise ValueError(f"token {int(store.ids.max())} is beyond the {len(tokenizer)} of the tokenizer")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"the tokenised text is damaged ({error}).",
            field="out",
            value=str(folder),
            fix="Delete it, then use `resume=True`: the text is tokenised again.",
        ) from error
    return store


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
