"""The text that models are compared on: the same held-out documents for all."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smolmoe.core.files import expanded
from smolmoe.core.json_text import read_json, read_object
from smolmoe.core.vocabulary import naming_rows
from smolmoe.data.corpus import UNKNOWN_DOMAIN
from smolmoe.data.embedded import is_held_out
from smolmoe.data.sources import open_source, with_domains
from smolmoe.data.text import Document
from smolmoe.data.tokens import encode_documents, end_of_text
from smolmoe.errors import DataError, RequestError
from smolmoe.evaluation.held_out import HeldOut, cut_windows
from smolmoe.recipe.data import DataRecipe, SourceRecipe
from smolmoe.results.comparison import TextFacts

RUN = "run.json"  # of a training run's folder
SIDES = ("sources", "validation")
LENGTH = 256
TOKENS = 20_000
DOCUMENT_TOKENS = 1024
FEWEST_TOKENS = 2
FEWEST_DOCUMENTS = 2  # for a bootstrap over documents


@dataclass(frozen=True)
class Limits:
    """How much text is read.

    Attributes:
        tokens: to predict per domain; documents are taken in order until it is reached.
        document_tokens: maximum per document, so that no long document dominates its domain.
        length: maximum number of tokens that a window predicts.
    """

    tokens: int
    document_tokens: int
    length: int

    def asked(self, tokens: int | None, document_tokens: int | None, length: int | None) -> Limits:
        """The same with the requested values.

        Raises:
            RequestError: one is too small.
        """
        values = {"tokens": tokens, "document_tokens": document_tokens, "length": length}
        for field, value in values.items():
            if value is not None and value < FEWEST_TOKENS:
                raise RequestError(f"must be {FEWEST_TOKENS} at least.", field=field, value=value)
        return replace(self, **{field: value for field, value in values.items() if value is not None})


@dataclass(frozen=True)
class JudgedText:
    """Documents to compare models on.

    Attributes:
        documents: the whole documents.
        texts: the part of each that is scored.
        ended: whether a text is the whole document, so that its end is predicted too.
        base_ids: the base's tokens of each text, with the end of text if it is predicted.
        places: where each was read; empty if unknown.
    """

    documents: tuple[str, ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    domains: tuple[str, ...]
    base_ids: tuple[tuple[int, ...], ...]
    places: tuple[str, ...] = ()

    @property
    def bytes(self) -> tuple[int, ...]:
        """UTF-8 bytes of each text."""
        return tuple(len(text.encode()) for text in self.texts)

    def facts(self, source: str, by: str | None, length: int) -> TextFacts:
        """The numbers of documents, tokens and bytes."""
        documents, tokens, size = Counter(self.domains), Counter[str](), Counter[str]()
        for domain, ids, count in zip(self.domains, self.base_ids, self.bytes, strict=True):
            tokens[domain] += len(ids)
            size[domain] += count
        digest = hashlib.sha256()
        for domain, text in zip(self.domains, self.texts, strict=True):
            digest.update(hashlib.sha256(f"{domain}\n{text}".encode()).digest())
        return TextFacts(source, by, dict(documents), dict(tokens), dict(size), length, digest.hexdigest())


def find_documents(data: str, by: str | None) -> Iterator[Document]:
    """The documents of a source, or those that a training run holds out; each text once.

    Args:
        data: a path or data set as `open_source` takes it, or the folder of a run.
        by: column of the domain; documents without one are left out. None for one domain.

    Raises:
        DataError: it cannot be read, or no document has a domain; HubError: a data set cannot be loaded.
    """
    recipe = run_data(expanded(data))
    if recipe is None:
        source = open_source(SourceRecipe.model_validate({"path": data, "domain_column": by or "domain"}))
        found = source.documents() if by is None else with_domains(source, by)
    elif by in (None, "domain"):
        found = held_out_documents(recipe)
    else:
        raise RequestError(
            "the domains of a run's text are those of its recipe.", field="by", value=by, fix="Use `by='domain'`."
        )
    seen: set[str] = set()
    for number, document in enumerate(found, 1):
        text = document.text.encode("utf-8", "replace").decode()  # JSON can hold halves of surrogate pairs
        if text not in seen:
            seen.add(text)
            domain = UNKNOWN_DOMAIN if by is None else document.domain or UNKNOWN_DOMAIN
            yield Document(text, domain, document.place or f"document {number}")


def run_limits(data: str) -> Limits:
    """How a training run measures its held-out loss; the default for other text."""
    folder = expanded(data)
    if run_data(folder) is None:
        return Limits(TOKENS, DOCUMENT_TOKENS, LENGTH)
    recipe = read_object(folder / RUN)["recipe"]
    return Limits(recipe["evaluation"]["tokens"], recipe["evaluation"]["per_document"], recipe["data"]["length"])


def run_data(folder: Path) -> DataRecipe | None:
    """The data of a training run's recipe; None if the folder is not a run.

    Raises:
        DataError: the run records no held-out text.
    """
    if not (folder / RUN).is_file():
        return None
    try:
        recipe = DataRecipe.model_validate(read_json(folder / RUN)["recipe"]["data"])
        return recipe.model_copy(
            update={side: tuple(_placed(source, folder) for source in getattr(recipe, side)) for side in SIDES}
        )
    except (ValueError, KeyError, TypeError) as error:
        problem = "its data is no corpus" if isinstance(error, ValidationError) else f"not readable: {error!r}"
        raise DataError(
            f"there is no held-out text in this run ({problem}).",
            field="data",
            value=str(folder),
            fix="Name the folder of a `smolmoe train`, or a file of text.",
        ) from error


def nearby(name: str, folder: Path) -> Path | None:
    """A recorded file or folder: at its path, or, for a relative path, relative to a folder above `folder`."""
    path = expanded(name)
    places = [path] if path.is_absolute() else [path, *(above / path for above in folder.parents)]
    return next((place for place in places if place.exists()), None)


def held_out_documents(recipe: DataRecipe) -> Iterator[Document]:
    """The documents that a training on this data holds out, in order."""
    if recipe.validation:
        return _documents(recipe.validation)
    return (document for document in _documents(recipe.sources) if is_held_out(document.text, recipe.held_out))


def _placed(source: SourceRecipe, folder: Path) -> SourceRecipe:
    """The source with the path of its file from here, if it exists."""
    found = None if source.path is None else nearby(source.path, folder.resolve())
    return source if found is None else source.model_copy(update={"path": str(found)})


def _documents(sources: Iterable[SourceRecipe]) -> Iterator[Document]:
    return chain.from_iterable(open_source(source).documents() for source in sources)


def judge_by(documents: Iterable[Document], tokenizer: Any, limits: Limits, data: str) -> JudgedText:
    """Take documents until every domain has its tokens, and truncate long ones.

    Args:
        tokenizer: of the base; no model predicts what it truncates.

    Raises:
        DataError: there is no text, or a single document; the tokenizer has no end-of-text token.
    """
    spent: Counter[str] = Counter()
    rows: list[tuple[str, str, bool, str, tuple[int, ...], str]] = []
    for number, document in enumerate(documents, 1):
        domain = document.domain or UNKNOWN_DOMAIN
        if spent[domain] >= limits.tokens:
            continue
        place = document.place or f"document {number}"
        with naming_rows(data, [place]):
            ids = tuple(encode_documents(tokenizer, [document.text])[0])
        kept = ids[: limits.document_tokens]
        ended = len(kept) == len(ids)
        text = document.text if ended else tokenizer.decode(kept, clean_up_tokenization_spaces=False)
        if text:
            spent[domain] += len(kept)
            rows.append((document.text, text, ended, domain, kept, place))
    if len(rows) < FEWEST_DOCUMENTS:
        raise DataError(
            "it holds no text." if not rows else "a single document gives no interval over documents.",
            field="data",
            value=data,
            fix="Give several held-out documents.",
        )
    whole, texts, ends, domains, base_ids, places = zip(*rows, strict=True)
    return JudgedText(whole, texts, ends, domains, base_ids, places)


def windows_for(text: JudgedText, tokenizer: Any, length: int, *, is_base: bool) -> HeldOut:
    """The windows in which a model with this tokenizer reads the text.

    Args:
        is_base: its tokens are the base's.
    """
    ids = text.base_ids if is_base else _encoded(text, tokenizer)
    whole = sum(map(len, ids)) + 1
    start = end_of_text(tokenizer)
    return cut_windows(ids, text.domains, length=length, start=start, budget=whole, per_document=whole)


def _encoded(text: JudgedText, tokenizer: Any) -> Sequence[Sequence[int]]:
    with naming_rows(getattr(tokenizer, "name_or_path", ""), text.places, field="model", what="document"):
        encoded = encode_documents(tokenizer, text.texts)
    return [ids if ended else ids[:-1] for ids, ended in zip(encoded, text.ended, strict=True)]
