"""The corpus of a recipe: split by document, tokenised once, kept in a cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.files import expanded, write_json
from smolmoe.core.json_text import read_json
from smolmoe.core.locks import locked
from smolmoe.core.progress import Progress
from smolmoe.core.refusals import writing
from smolmoe.data.embedded import is_held_out
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.data.sources import Source, open_source
from smolmoe.data.tally import HALF_PAIR, NO_TEXT, Tally
from smolmoe.data.text import Document
from smolmoe.data.tokens import StoreWriter, TokenStore, encode_documents, end_of_text, id_type, open_store
from smolmoe.errors import DataError, OutputError
from smolmoe.recipe.data import DataRecipe

logger = logging.getLogger(__name__)


FORMAT = 1  # of the cache; increases when the same recipe would give other tokens
UNKNOWN_DOMAIN = "text"
SIDES = ("train", "validation")
ABOUT = "corpus.json"
# Texts are tokenised in batches of at most so many texts and characters: enough for a fast tokenizer.
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 2_000_000
ABANDONED = 7 * 86400  # seconds after which an incomplete folder is considered abandoned


@dataclass(frozen=True)
class TokenCorpus:
    """Tokenised documents to train on and to validate on; no text is in both, and none twice.

    Attributes:
        domains: names; a document's domain id is its index here, "text" if its domain is unknown.
        fingerprint: of the texts, the tokenizer and the options that change the tokens or the split. It does not depend
            on how far a streamed source is read.
        dropped: skipped documents: "duplicates", those "held out" by validation sources, and rows with "no text".
        unread: files of folders that are not read, each with the reason.
    """

    train: TokenStore
    validation: TokenStore
    domains: tuple[str, ...]
    fingerprint: str
    dropped: dict[str, int] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Documents and tokens of each side, in all and by domain, and the documents dropped."""
        return {
            "train": self._side(self.train),
            "validation": self._side(self.validation),
            "dropped": dict(self.dropped),
            **({"files_not_read": dict(self.unread)} if self.unread else {}),
        }

    @property
    def changed(self) -> dict[str, int]:
        """Rows that were skipped or changed because of their content."""
        return {reason: count for reason, count in self.dropped.items() if reason in (NO_TEXT, HALF_PAIR)}

    def with_files(self, sources: Sequence[Source]) -> TokenCorpus:
        """With the unread files of its sources, which the cache does not record."""
        found = [source.files for source in sources if source.files is not None]
        return replace(self, unread={str(file): why for files in found for file, why in files.unread.items()})

    def _side(self, store: TokenStore) -> dict[str, Any]:
        documents = np.bincount(store.domain_ids, minlength=len(self.domains))
        tokens = np.bincount(store.domain_ids, weights=store.lengths, minlength=len(self.domains))
        by_domain = {
            name: {"documents": int(documents[index]), "tokens": int(tokens[index])}
            for index, name in enumerate(self.domains)
            if documents[index]
        }
        return {"documents": len(store), "tokens": store.tokens, "domains": by_domain}


def load_corpus(
    recipe: DataRecipe, tokenizer: Any, *, tokens: int | None = None, report: Progress | None = None
) -> TokenCorpus:
    """The corpus of a recipe, from the cache if it was tokenised before.

    The side of a document depends only on its text (`is_held_out`), or on its source if the recipe has validation
    sources. Of equal texts the first is kept, and a validation text is never trained on.

    Args:
        tokenizer: a transformers tokenizer with an end-of-text token.
        tokens: training tokens that the run needs. A streamed source is read until it has given its share: by weight,
            or the same for all sources without weights. None reads streams to their end.
        report: called with the source being tokenised, its documents so far, and their number (0 if unknown).

    Raises:
        DataError: a source cannot be read, or a side is empty; HubError: a hub data set cannot be loaded; OutputError:
            the cache cannot be written.
    """
    end_of_text(tokenizer)  # before anything is read
    sources = [open_source(source) for source in recipe.sources]
    validation = [open_source(source) for source in recipe.validation]
    for source, its_recipe in zip(validation, recipe.validation, strict=True):
        if source.streamed and its_recipe.rows is None:
            raise DataError(
                "a streamed validation source is unlimited.",
                field="data.validation",
                value=source.label,
                fix="Set `rows` to the number of documents to hold out.",
            )
    content: dict[str, Any] = {
        "format": FORMAT,
        "sources": [source.identity for source in sources],
        "validation": [source.identity for source in validation],
        "held_out": None if validation else recipe.held_out,
        "tokenizer": tokenizer_hash(tokenizer),
    }
    limits = _limits(recipe, sources, tokens)
    folder = _cache_folder(recipe) / "tokens" / _digest({**content, "limits": limits})
    fingerprint = _digest(content)
    corpus = _read(folder, fingerprint)
    if corpus is not None:
        Tally(Counter(corpus.changed)).log("the text")
        return corpus.with_files([*sources, *validation])
    with _beside(folder) as partial:
        _Build(recipe, tokenizer, partial, report).run(sources, validation, limits)
    corpus = _read(folder, fingerprint)
    if corpus is None:
        raise OutputError("the files just written cannot be read back.", field="data.cache", value=str(folder))
    return corpus.with_files([*sources, *validation])


def _limits(recipe: DataRecipe, sources: Sequence[Source], tokens: int | None) -> list[int | None]:
    """The training tokens to read of each source; None for all.

    `order_documents` begins no document of a source beyond its share, so that a share is enough.
    """
    weights = [source.weight or 1.0 for source in recipe.sources]
    return [
        None if tokens is None or not source.streamed else int(tokens * weight / sum(weights)) + 1
        for source, weight in zip(sources, weights, strict=True)
    ]


def _cache_folder(recipe: DataRecipe) -> Path:
    if recipe.cache is not None:
        return recipe.cache
    if named := os.environ.get("SMOLMOE_CACHE"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "smolmoe"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _read(folder: Path, fingerprint: str) -> TokenCorpus | None:
    """The corpus in a folder of the cache; None if it is missing or damaged (it is then removed)."""
    if not folder.is_dir():
        return None
    try:
        about = read_json(folder / ABOUT)
        train, validation = (
            open_store(folder / side, about["dtype"], tuple(about["streamed"][side])) for side in SIDES
        )
        return TokenCorpus(train, validation, tuple(about["domains"]), fingerprint, about["dropped"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s): the text is tokenised again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder that is moved to `folder` when complete; another process may have been faster."""
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*"):
            if time.time() - left.stat().st_mtime > ABANDONED:
                with suppress(OutputError), locked(left):  # a run that takes longer still has its lock
                    shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with locked(partial):
            yield partial
            with _writing(folder):
                try:
                    partial.rename(folder)
                except OSError:
                    if not folder.is_dir():
                        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    fix = "Free some space, or name another folder with data.cache or SMOLMOE_CACHE."
    with writing(folder, field="data.cache", said="tokenised text cannot be stored", fix=fix):
        yield


class _Build:
    """Reads the sources once, and writes both sides."""

    def __init__(self, recipe: DataRecipe, tokenizer: Any, folder: Path, report: Progress | None):
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.folder = folder
        self.report = report
        self.dtype = id_type(tokenizer)
        with _writing(folder):
            self.writers = {side: StoreWriter(folder / side, self.dtype) for side in SIDES}
        self.domains: dict[str, int] = {}
        # Digests of the texts so far: 16 bytes each, so that millions of documents fit in memory.
        self.held: set[bytes] = set()
        self.seen: set[bytes] = set()
        self.dropped = {"duplicates": 0, "held out": 0}

    def run(self, sources: Sequence[Source], validation: Sequence[Source], limits: Sequence[int | None]) -> None:
        """Write the stores, and last their description."""
        try:
            for number, source in enumerate(validation):
                self._take(source, number, 1.0, None)
            self.held, self.seen = self.seen, set()
            share = 0.0 if validation else self.recipe.held_out
            for number, (source, limit) in enumerate(zip(sources, limits, strict=True)):
                self._take(source, number, share, limit)
            self._check_sides()
            with _writing(self.folder):
                for writer in self.writers.values():
                    writer.finish()
                about = {"dtype": self.dtype, "domains": list(self.domains), "dropped": self.dropped}
                # The order of a stream does not matter for held-out documents.
                measured = [False] * len(validation or sources)
                streamed = {"train": [source.streamed for source in sources], "validation": measured}
                write_json(self.folder / ABOUT, {**about, "streamed": streamed})
        finally:
            for writer in self.writers.values():
                writer.close()

    def _take(self, source: Source, number: int, share: float, limit: int | None) -> None:
        """Tokenise the new documents of a source and hold out a share, up to `limit` training tokens."""
        before = self.writers["train"].tokens
        read = 0
        tally = Tally()
        for batch in _batches(source.documents(tally)):
            read += len(batch)
            self._write([document for document in batch if self._is_new(document.text)], number, share)
            if self.report is not None:
                self.report(f"Reading {source.label}", read, source.expected or 0)
            if limit is not None and self.writers["train"].tokens - before >= limit:
                break
        tally.log(source.label)
        for reason, count in tally.counts.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _is_new(self, text: str) -> bool:
        digest = hashlib.sha256(text.encode()).digest()[:16]
        for reason, met in (("held out", self.held), ("duplicates", self.seen)):
            if digest in met:
                self.dropped[reason] += 1
                return False
        self.seen.add(digest)
        return True

    def _write(self, documents: Sequence[Document], source: int, share: float) -> None:
        encoded = encode_documents(self.tokenizer, [document.text for document in documents])
        held_out = [is_held_out(document.text, share) for document in documents]
        domains = [self._domain(document.domain or UNKNOWN_DOMAIN) for document in documents]
        with _writing(self.folder):
            for side, writer in self.writers.items():
                chosen = [index for index, held in enumerate(held_out) if held == (side == "validation")]
                writer.add([encoded[index] for index in chosen], [domains[index] for index in chosen], source)

    def _domain(self, name: str) -> int:
        number = self.domains.setdefault(name, len(self.domains))
        if number > np.iinfo(np.int16).max:
            raise DataError(
                f"there are more than {number} domains.",
                field="domain_column",
                value=name,
                fix="Name a column that contains a document's domain, or set `domain`.",
            )
        return number

    def _check_sides(self) -> None:
        train, validation = (self.writers[side].documents for side in SIDES)
        if not train and not validation:
            raise DataError("the sources contain no text.", field="data.sources", value=len(self.recipe.sources))
        own = bool(self.recipe.validation)
        if not validation and own:
            raise DataError("its sources contain no text.", field="data.validation", value=len(self.recipe.validation))
        if not validation:
            raise DataError(
                f"none of the {train} documents is held out.",
                field="data.held_out",
                value=self.recipe.held_out,
                fix="Increase it, add documents, or set data.validation to held-out texts.",
            )
        if not train:
            raise DataError(
                f"all {validation} documents are held out: none remains for training.",
                field="data.validation" if own else "data.held_out",
                value=len(self.recipe.validation) if own else self.recipe.held_out,
                fix="Use other texts for training." if own else "Decrease it, or add documents.",
            )


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
