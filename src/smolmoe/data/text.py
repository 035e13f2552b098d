"""Text as documents with domain tags: read it from files, get a small default, cut it into token sequences."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from smolmoe.errors import DataError

READABLE = (".jsonl", ".txt", ".parquet")


@dataclass(frozen=True)
class Document:
    """One text, and the domain that it belongs to where that is known."""

    text: str
    domain: str | None = None


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file.

    `.jsonl`: one object a line, {"text": ..., "domain": ... (optional)}. `.txt`: paragraphs separated by blank lines.
    `.parquet`: a `text` column and an optional `domain` column; needs pyarrow.

    Raises:
        DataError: naming the file, the line (or row) and what is wrong with it.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("there is no such file.", field="data", value=str(path), fix="Give the path of a text file.")
    if file.suffix == ".jsonl":
        documents = _read_jsonl(file)
    elif file.suffix == ".txt":
        documents = [Document(part) for part in _paragraphs(_decoded(file))]
    elif file.suffix == ".parquet":
        documents = _read_parquet(file)
    else:
        raise DataError(
            f"{file.suffix or 'a file without suffix'} is not a text format that smolmoe reads.",
            field="data",
            value=str(path),
            fix=f"Use one of {', '.join(READABLE)}.",
        )
    if not documents:
        raise DataError("the file holds no text.", field="data", value=str(path))
    return documents


def write_documents(path: str | Path, documents: Sequence[Document]) -> None:
    """Write `documents` as `.jsonl`, in the form that `read_documents` reads."""
    with Path(path).open("w", encoding="utf-8") as file:
        for document in documents:
            row = {"text": document.text} | ({} if document.domain is None else {"domain": document.domain})
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def default_documents(seed: int = 0) -> list[Document]:
    """Two dozen documents each of code, prose and mathematics from this Python installation, in well under a second.

    Meant for checks that need real text but no particular one (verification, the doctor).
    """
    from smolmoe.data.embedded import DOMAINS, embedded_corpus

    documents = embedded_corpus(seed=seed, megabytes=0.6).train
    by_domain = ([document for document in documents if document.domain == domain] for domain in DOMAINS)
    return [document for group in islice(zip(*by_domain, strict=False), 24) for document in group]


def encode(tokenizer: Any, documents: Sequence[Document], length: int, count: int, seed: int = 0) -> list[list[int]]:
    """`count` token sequences of unequal lengths between `length // 2` and `length`, made of shuffled `documents`.

    A document shorter than its sequence is followed by the next one; the documents are gone through again where they
    do not suffice. The lengths are all different as far as the range allows, so that batches of them need padding.

    Args:
        tokenizer: a transformers tokenizer.
        length: the longest sequence, in tokens.

    Raises:
        DataError: `length` is below 2, `count` below 1, or the documents hold no tokens.
    """
    if length < 2 or count < 1:
        field, value = ("length", length) if length < 2 else ("count", count)
        raise DataError("too small to make sequences of.", field=field, value=value, fix="length >= 2 and count >= 1.")
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
                raise DataError("the documents hold no tokens.", field="data", value=f"{len(documents)} documents")
            # Sixteen characters a token is more than any tokenizer needs, and far less than a book.
            text = documents[order[position % len(order)]].text[: 16 * length]
            new = list(tokenizer(text)["input_ids"])
            empty = 0 if new else empty + 1
            ids += new
            position += 1
        sequences.append(ids[:wanted])
    return sequences


def _unequal(rng: random.Random, allowed: range, count: int) -> list[int]:
    """`count` values of `allowed`, none twice before all are used."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(allowed, len(allowed))
    return drawn[:count]


def _decoded(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is not UTF-8.", field="data", value=str(file), fix="Convert the file to UTF-8."
        ) from error


def _paragraphs(text: str) -> list[str]:
    """Runs of lines between blank lines, stripped."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(lines).strip() for lines in paragraphs if lines]


def _read_jsonl(file: Path) -> list[Document]:
    # Not str.splitlines: JSON strings may hold U+2028 and its like unescaped.
    lines = _decoded(file).split("\n")
    return [
        _json_document(file, number, line.removeprefix("\ufeff"))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _json_document(file: Path, number: int, line: str) -> Document:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _bad_row(file, f"line {number}", f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise _bad_row(file, f"line {number}", f"a JSON {type(row).__name__}, not an object")
    return _document(file, f"line {number}", row)


def _document(file: Path, where: str, row: dict[str, Any]) -> Document:
    if "text" not in row:
        raise _bad_row(file, where, f'no "text" among its keys ({", ".join(map(str, row)) or "none"})')
    text, domain = row["text"], row.get("domain")
    if not isinstance(text, str):
        raise _bad_row(file, where, f'"text" is a {type(text).__name__}, not a string')
    if not text.strip():
        raise _bad_row(file, where, '"text" is empty')
    if domain is not None and not isinstance(domain, str):
        raise _bad_row(file, where, f'"domain" is a {type(domain).__name__}, not a string')
    return Document(text, domain)


def _bad_row(file: Path, where: str, problem: str) -> DataError:
    return DataError(
        f"{where}: {problem}.",
        field="data",
        value=str(file),
        fix='Each one must be {"text": "...", "domain": "..."}, the domain being optional.',
    )


def _read_parquet(file: Path) -> list[Document]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            "reading .parquet needs pyarrow, which is not installed.",
            field="data",
            value=str(file),
            fix="Install it with `pip install pyarrow`, or convert the file to .jsonl.",
        ) from error
    try:
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file ({error}).", field="data", value=str(file)) from error
    kept = [name for name in ("text", "domain") if name in table.column_names]
    if "text" not in kept:
        raise DataError(
            f'no "text" among its columns ({", ".join(table.column_names)}).', field="data", value=str(file)
        )
    rows = table.select(kept).to_pylist()
    return [_document(file, f"row {number}", row) for number, row in enumerate(rows, 1)]
