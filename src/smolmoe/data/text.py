"""Text as documents with domain tags: read it from files, get a small default, cut it into token sequences."""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from smolmoe.data.vocabulary import naming_rows
from smolmoe.errors import DataError

READABLE = (".jsonl", ".txt", ".parquet")
FORM = 'Each one must be {"text": "...", "domain": "..."}, the domain being optional.'


@dataclass(frozen=True)
class Document:
    """One text, and the domain that it belongs to where that is known."""

    text: str
    domain: str | None = None


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file.

    `.jsonl`: one object a line, {"text": ..., "domain": ... (optional)}. `.txt`: paragraphs separated by blank lines.
    `.parquet`: a `text` column and an optional `domain` column.

    Raises:
        DataError: naming the file, the line (or row) and what is wrong with it.
    """
    documents = [_document(Path(path), where, row) for where, row in read_rows(path, ("text",), ("domain",))]
    if not documents:
        raise DataError("the file holds no text.", field="data", value=str(path))
    return documents


def read_rows(
    path: str | Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file one at a time, each after the place where it stands ("line 3", "row 3", "paragraph 3").

    Of a `.parquet` file only the columns that are named are read. A `.txt` file has the one column `text`.

    Args:
        required: columns that every row must have.
        optional: columns to read where they are there.

    Raises:
        DataError: naming the file, the line (or row) and what is wrong with it.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("there is no such file.", field="data", value=str(path), fix="Give the path of a text file.")
    if file.suffix == ".jsonl":
        yield from _jsonl_rows(file, required)
    elif file.suffix == ".txt":
        check_columns(("text",), required, "columns", file)
        for number, paragraph in enumerate(_paragraphs(_lines(file)), 1):
            yield f"paragraph {number}", {"text": paragraph}
    elif file.suffix == ".parquet":
        yield from _parquet_rows(file, required, optional)
    else:
        raise DataError(
            f"{file.suffix or 'a file without suffix'} is not a text format that smolmoe reads.",
            field="data",
            value=str(path),
            fix=f"Use one of {', '.join(READABLE)}.",
        )


def check_columns(there: Sequence[str], required: Sequence[str], kind: str, value: object, *, where: str = "") -> None:
    """Raise DataError for the first required column that is not `there`, naming those that are and the nearest one.

    Args:
        kind: what they are called in the message: "keys" or "columns".
        value: the file or data set.
        where: the line or row, if it concerns only one, as "line 3: ".
    """
    for column in required:
        if column not in there:
            near = difflib.get_close_matches(column, [str(name) for name in there], n=1)
            hints = [f"Did you mean {near[0]!r}?"] if near else []
            raise DataError(
                f'{where}no "{column}" among its {kind} ({", ".join(map(str, there)) or "none"}).',
                field="data",
                value=str(value),
                fix=" ".join([*hints, FORM] if column == "text" else hints) or None,
            )


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


def encode(
    tokenizer: Any,
    documents: Sequence[Document],
    length: int,
    count: int,
    seed: int = 0,
    data: object = "text of this Python installation",
) -> list[list[int]]:
    """`count` token sequences of unequal lengths between `length // 2` and `length`, made of shuffled `documents`.

    A document shorter than its sequence is followed by the next one; the documents are gone through again where they
    do not suffice. The lengths are all different as far as the range allows, so that batches of them need padding.

    Args:
        tokenizer: a transformers tokenizer.
        length: the longest sequence, in tokens.
        data: what the documents are from.

    Raises:
        DataError: `length` is below 2, `count` below 1, the documents hold no tokens, or one that the model lacks.
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
            with naming_rows(data, order[position % len(order)], what="document"):
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


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, split at newlines alone: JSON strings may hold U+2028 and its like unescaped."""
    offset = 0
    with file.open("rb") as stream:
        for line in stream:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"byte {offset + error.start} is not UTF-8.",
                    field="data",
                    value=str(file),
                    fix="Convert the file to UTF-8.",
                ) from error
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(line)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank lines, stripped."""
    paragraph: list[str] = []
    for line in chain.from_iterable(map(str.splitlines, lines)):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph).strip()
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph).strip()


def _jsonl_rows(file: Path, required: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line.rstrip("\r\n"))
        except (json.JSONDecodeError, RecursionError) as error:
            problem = f"{error.msg} at column {error.colno}" if isinstance(error, ValueError) else "nested too deeply"
            raise _bad_row(file, where, f"not JSON ({problem})") from error
        if not isinstance(row, dict):
            raise _bad_row(file, where, f"a JSON {type(row).__name__}, not an object")
        check_columns(tuple(row), required, "keys", file, where=f"{where}: ")
        yield where, row


def _document(file: Path, where: str, row: dict[str, Any]) -> Document:
    text, domain = row["text"], row.get("domain")
    if not isinstance(text, str):
        raise _bad_row(file, where, f'"text" is a {type(text).__name__}, not a string')
    if not text.strip():
        raise _bad_row(file, where, '"text" is empty')
    if domain is not None and not isinstance(domain, str):
        raise _bad_row(file, where, f'"domain" is a {type(domain).__name__}, not a string')
    return Document(text, domain)


def _bad_row(file: Path, where: str, problem: str) -> DataError:
    return DataError(f"{where}: {problem}.", field="data", value=str(file), fix=FORM)


def _parquet_rows(file: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            check_columns(names, required, "columns", file)
            columns = [name for name in dict.fromkeys((*required, *optional)) if name in names]
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file ({error}).", field="data", value=str(file)) from error
