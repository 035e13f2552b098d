"""Text as documents with domain tags: reading files, a small default text, cutting into token sequences."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.core.vocabulary import naming_rows
from smolmoe.data.formats import Rows, rows_of
from smolmoe.errors import DataError


@dataclass(frozen=True)
class Document:
    """One text, and its domain, if known.

    Attributes:
        place: of its row ("rows.jsonl, line 3"); None if it is not made from exactly one row.
    """

    text: str
    domain: str | None = None
    place: str | None = field(default=None, compare=False, repr=False)


def is_empty(text: Any) -> bool:
    """Whether a cell is None, blank, or NaN, the empty cell of untyped tables."""
    return text is None or text != text or (isinstance(text, str) and not text.strip())


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file or folder, as training reads them.

    Raises:
        DataError: naming the file, the line (or row) and the problem.
    """
    from smolmoe.data.sources import open_source
    from smolmoe.recipe.data import SourceRecipe

    if not expanded(path).exists():
        raise DataError("no such file.", field="data", value=str(path), fix="Use the path of a text file.")
    documents = list(open_source(SourceRecipe.model_validate({"path": str(path)})).documents())
    if not documents:
        raise DataError("the file contains no text.", field="data", value=str(path))
    return documents


def read_lines(path: Path, *, field: str) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("is not a readable text file.", field=field, value=str(path)) from error


def read_rows(path: str | Path, required: Sequence[str], optional: Sequence[str] | None = ()) -> Rows:
    """The rows of a file one at a time, each after its place ("line 3", "row 3", "paragraph 3").

    Of a table (`.parquet`, `.arrow`) only the columns that are named are read. A `.txt` file has the one column `text`.

    Args:
        required: columns that every row must have.
        optional: columns to read if they exist; None for all.

    Raises:
        DataError: naming the file, the line (or row) and the problem.
    """
    file = Path(path)
    if not file.is_file():
        problem = "is a folder, not a file." if file.is_dir() else "no such file."
        raise DataError(problem, field="data", value=str(path), fix="Use the path of a text file.")
    yield from rows_of(file, required, optional)


def write_documents(path: str | Path, documents: Sequence[Document]) -> None:
    """Write `documents` as `.jsonl`, in the format of `read_documents`."""
    with Path(path).open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(to_row(document), ensure_ascii=False) + "\n")


def to_row(document: Document) -> dict[str, str]:
    """A document in the format of `read_documents`."""
    return {"text": document.text} | ({} if document.domain is None else {"domain": document.domain})


def default_documents(seed: int = 0) -> list[Document]:
    """Two dozen documents each of code, prose and mathematics from this Python installation, in well under a second.

    For checks that need some real text (verification, the doctor).
    """
    from smolmoe.data.embedded import DOMAINS, embedded_corpus

    documents = embedded_corpus(seed=seed, megabytes=0.6).train
    by_domain = ([document for document in documents if document.domain == domain] for domain in DOMAINS)
    return [document for group in islice(zip(*by_domain, strict=False), 24) for document in group]


def encode(
    tokenizer: Any,
    documents: Sequence[Document],
    length: int,
    count: int,
    seed: int = 0,
    data: object = "text of this Python installation",
) -> list[list[int]]:
    """`count` token sequences of unequal lengths between `length // 2` and `length`, made of shuffled `documents`.

    A document shorter than its sequence is followed by the next one, cyclically. The lengths are as different as the
    range allows, so that batches need padding.

    Args:
        tokenizer: a transformers tokenizer.
        length: the longest sequence, in tokens.
        data: source of the documents, for errors.

    Raises:
        DataError: `length` is below 2, `count` below 1, the documents have no tokens, or one that the model lacks.
    """
    if length < 2 or count < 1:
        field, value = ("length", length) if length < 2 else ("count", count)
        raise DataError("is too small for sequences.", field=field, value=value, fix="length >= 2 and count >= 1.")
    rng = random.Random(seed)
    lengths = _unequal(rng, range(max(1, length // 2), length + 1), count)
    order = rng.sample(range(len(documents)), len(documents))
    sequences: list[list[int]] = []
    position = 0
    for wanted in lengths:
        ids: list[int] = []
        empty = 0
        while len(ids) < wanted:
            if empty == len(order):
                raise DataError("the documents contain no tokens.", field="data", value=f"{len(documents)} documents")
            # 16 characters per token are more than any tokenizer needs, and far less than a book.
            text = documents[order[position % len(order)]].text[: 16 * length]
            at = order[position % len(order)]
            with naming_rows(data, [documents[at].place or f"document {at + 1}"]):
                new = list(tokenizer(text)["input_ids"])
            empty = 0 if new else empty + 1
            ids += new
            position += 1
        sequences.append(ids[:wanted])
    return sequences


def _unequal(rng: random.Random, allowed: range, count: int) -> list[int]:
    """`count` values of `allowed`, without repetition until all are used."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(allowed, len(allowed))
    return drawn[:count]
