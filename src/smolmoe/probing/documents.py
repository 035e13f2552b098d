"""Tagged documents as batches of windows, read as a stream."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from smolmoe.core.vocabulary import naming_rows
from smolmoe.data.sources import open_source, with_domains
from smolmoe.data.text import Document
from smolmoe.data.tokens import end_of_text
from smolmoe.errors import DataError
from smolmoe.recipe.data import SourceRecipe

CHUNK = 256  # documents tokenised, and sorted by length, together


@dataclass(frozen=True)
class TaggedDocument:
    """A document's token ids, its domain, and a hash of its text."""

    ids: Sequence[int]
    domain: str
    key: int


@dataclass(frozen=True)
class Batch:
    """Windows of similar length, padded on the right, where no causal model sees it.

    Attributes:
        inputs: token ids [W, S].
        keep: [W, S] bool: tokens of the text, without the end-of-text token that starts a document and padding.
        owners: [W], the index of each window's document among those that the batch was made of.
    """

    inputs: torch.Tensor
    keep: torch.Tensor
    owners: torch.Tensor


def read_tagged(
    data: str, tokenizer: Any, *, by: str, document_tokens: int, tokens: int | None = None, seed: int = 0
) -> Iterator[TaggedDocument]:
    """The documents of a source, in its order, each up to `document_tokens`; those without a domain are left out.

    Args:
        data: a path or data set as in `open_source`.
        by: the column of the domain.
        tokens: maximum per domain, plus the rest of the last document; None for all.
        seed: of the documents' keys.

    Raises:
        DataError: the source cannot be read, or no row has a domain.
    """
    source = open_source(SourceRecipe.model_validate({"path": data, "domain_column": by}))
    spent: Counter[str] = Counter()
    documents = with_domains(source, by)
    while chunk := list(islice(documents, CHUNK)):
        wanted = [document for document in chunk if tokens is None or spent[str(document.domain)] < tokens]
        with naming_rows(data, [str(document.place) for document in wanted]):
            encoded = _encoded(tokenizer, wanted, document_tokens)
        for document, ids in zip(wanted, encoded, strict=True):
            domain = str(document.domain)
            if ids and (tokens is None or spent[domain] < tokens):
                spent[domain] += len(ids)
                yield TaggedDocument(array("i", ids), domain, text_key(document.text, seed))


def text_key(text: str, seed: int = 0) -> int:
    """A hash of the text and the seed; training's held-out split uses another one."""
    return int.from_bytes(hashlib.sha256(f"probe {seed}\n{text}".encode()).digest()[:8], "big")


def check_domains(domains: Iterable[str], data: str) -> list[str]:
    """The domains in alphabetical order.

    Raises:
        DataError: there are fewer than two.
    """
    found = sorted(set(domains))
    if len(found) < 2:
        raise DataError(
            f"its rows are of {'one domain' if found else 'no domain'} ({', '.join(found) or 'no text'}); "
            "a probe needs at least two.",
            field="data",
            value=data,
            fix="Give text of several domains, or name the column of the domain with `by`.",
        )
    return found


def batches(
    documents: Sequence[TaggedDocument], *, start: int, length: int, batch_tokens: int, device: Any = "cpu"
) -> Iterator[Batch]:
    """All windows of the documents, the shortest first, about `batch_tokens` at a time.

    Args:
        start: the token that precedes each document.
        length: the longest window.
    """
    windows = [
        (text[cut : cut + length], owner, cut == 0)
        for owner, document in enumerate(documents)
        for text in [(start, *document.ids)]
        for cut in range(0, len(text), length)
    ]
    windows.sort(key=lambda window: len(window[0]))
    group: list[tuple[tuple[int, ...], int, bool]] = []
    for window in windows:
        if group and (len(group) + 1) * len(window[0]) > batch_tokens:
            yield _batch(group, device)
            group = []
        group.append(window)
    if group:
        yield _batch(group, device)


def chunked(documents: Iterable[TaggedDocument]) -> Iterator[list[TaggedDocument]]:
    """Lists of the documents that are sorted by length together."""
    rest = iter(documents)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def start_token(tokenizer: Any) -> int:
    """The token that precedes a document, as in training: end of text."""
    return end_of_text(tokenizer)


def _batch(group: Sequence[tuple[tuple[int, ...], int, bool]], device: Any) -> Batch:
    inputs = torch.zeros(len(group), len(group[-1][0]), dtype=torch.long)
    keep = torch.zeros_like(inputs, dtype=torch.bool)
    for row, (ids, _, is_first) in enumerate(group):
        inputs[row, : len(ids)] = torch.tensor(ids)
        keep[row, int(is_first) : len(ids)] = True
    owners = torch.tensor([owner for _, owner, _ in group])
    return Batch(inputs.to(device), keep.to(device), owners.to(device))


def _encoded(tokenizer: Any, documents: Sequence[Document], most: int) -> list[list[int]]:
    if not documents:
        return []
    # 16 characters per token are more than any tokenizer needs, and far less than a book.
    texts = [document.text[: 16 * most] for document in documents]
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [list(row[:most]) for row in ids]
