"""Files of rows: the supported formats and compressions, and the rows of each."""

from __future__ import annotations

import csv
import difflib
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from smolmoe.core.json_text import DuplicateKeyError, unique
from smolmoe.errors import DataError

Rows = Iterator[tuple[str, dict[str, Any]]]

FORM = 'Each one must be {"text": "...", "domain": "..."}; the domain is optional.'
_WHOLE = "the file"  # the place of a value that is the complete file
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array
_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_TABLES = (".parquet", ".arrow")
# Each file is one document.
# fmt: off
WHOLE = (
    ".md", ".rst", ".tex", ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt",
    ".scala", ".js", ".jsx", ".ts", ".tsx", ".rb", ".php", ".swift", ".lua", ".pl", ".r", ".jl", ".hs", ".ml",
    ".clj", ".ex", ".erl", ".sh", ".sql",
)
# fmt: on
FORMATS = (
    ".jsonl, .ndjson, .json, .csv, .tsv, .txt (each also as .gz, .zst, .bz2, .xz), .parquet, .arrow, or source text "
    "(.md, .py, .c, .js, ...)"
)
READABLE = (*_TEXT, *_TABLES, *(text + packed for text in _TEXT for packed in _COMPRESSIONS), *WHOLE)


def suffix_of(path: str | Path) -> str | None:
    """The lower-case suffix that determines a file's format (".jsonl.gz"); None for other files."""
    name = Path(path).name.lower()
    return next((suffix for suffix in sorted(READABLE, key=len, reverse=True) if name.endswith(suffix)), None)


def rows_of(file: Path, required: Sequence[str], optional: Sequence[str] | None) -> Rows:
    """The rows of a file, each after its place ("line 3"); the required columns of {} and null are empty.

    Raises:
        DataError: naming the file, the line (or row) and the problem.
    """
    suffix = suffix_of(file)
    if suffix is None:
        raise DataError(
            f"{file.suffix or 'a file without suffix'} is not a text format that smolmoe reads.",
            field="data",
            value=str(file),
            fix=f"Use one of {FORMATS}.",
        )
    if suffix in _TABLES:
        read = _parquet_rows if suffix == ".parquet" else _arrow_rows
        return read(file, required, optional)
    if suffix in WHOLE:
        return _whole_rows(file, required)
    readers: dict[str, Callable[[Path, Sequence[str]], Rows]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_rows,
        ".csv": _separated(","),
        ".tsv": _separated("\t"),
        ".txt": _paragraph_rows,
    }
    return readers["." + suffix.split(".")[1]](file, required)


def check_columns(there: Sequence[str], required: Sequence[str], kind: str, value: object, *, where: str = "") -> None:
    """Raise DataError for the first required column that is not in `there`, naming the existing and the nearest ones.

    Args:
        kind: their name in the message: "keys" or "columns".
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


# -- bytes and lines -------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The file's bytes, decompressed; errors of reading and decompression become a DataError."""
    packed = file.suffix.lower()
    try:
        if packed == ".zst":  # pyarrow comes with `datasets`; Python has zstd from 3.14 on
            stream = io.BufferedReader(import_module("pyarrow").input_stream(str(file), compression="zstd"))
        elif packed in _COMPRESSIONS:
            stream = import_module({".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}[packed]).open(file, "rb")
        else:
            stream = file.open("rb")
        with stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        problem = "cannot be decompressed" if packed in _COMPRESSIONS else "cannot be read"
        raise DataError(
            f"it {problem} ({str(error).rstrip('.') or type(error).__name__}).",
            field="data",
            value=str(file),
            fix="The file is damaged or truncated: fetch it again." if packed in _COMPRESSIONS else None,
        ) from error


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, split at newlines only: JSON strings may contain U+2028 unescaped."""
    offset = 0
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"line {number}: byte {offset + error.start} is not UTF-8.",
                    field="data",
                    value=str(file),
                    fix="Convert the file to UTF-8.",
                ) from error
            if "\0" in text:
                raise DataError(
                    f"line {number}: byte {offset + line.index(0)} is NUL, which is not valid in a text file.",
                    field="data",
                    value=str(file),
                    fix="Convert the file to UTF-8 if it is UTF-16, or fetch it again if it is damaged.",
                )
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(line)


# -- text formats ----------------------------------------------------------------------------------------------------


def _paragraph_rows(file: Path, required: Sequence[str]) -> Rows:
    check_columns(("text",), required, "columns", file)
    for number, paragraph in enumerate(_paragraphs(_lines(file)), 1):
        yield f"paragraph {number}", {"text": paragraph}


def _whole_rows(file: Path, required: Sequence[str]) -> Rows:
    """The text of the file, as one row."""
    check_columns(("text",), required, "columns", file)
    yield "line 1", {"text": "".join(_lines(file))}


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


def _json_lines(file: Path, required: Sequence[str]) -> Rows:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            where = f"line {number}"
            # Concatenated files have a byte order mark at each beginning.
            yield where, _row(file, where, _parsed(file, where, line.rstrip("\r\n").removeprefix("\ufeff")), required)


def _parsed(file: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except DuplicateKeyError as error:
        place = where if where != _WHOLE else f"row {_row_of_duplicate(text)}"
        fix = "Keep one of the two, or rename the other."
        raise DataError(f"{place}: {error}.", field="data", value=str(file), fix=fix) from error
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply"
        if isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno}, " if error.lineno > 1 else ""
            problem = f"{error.msg} at {line}column {error.colno}"
        elif isinstance(error, ValueError):
            problem = str(error)  # a number of too many digits
        raise _bad_row(file, where, f"not JSON ({problem})") from error


def _row_of_duplicate(text: str) -> int:
    """Number of the first array element with a duplicate key; 1 if there is no array."""
    decoder, at, number = json.JSONDecoder(object_pairs_hook=unique), text.find("[") + 1, 0
    with suppress(ValueError):
        while True:
            number += 1
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # matches nothing, too
            at = decoder.raw_decode(text, at)[1]
    return number


def _row(file: Path, where: str, row: Any, required: Sequence[str]) -> dict[str, Any]:
    if row is None or row == {}:
        return dict.fromkeys(required)
    if not isinstance(row, dict):
        raise _bad_row(file, where, f"a JSON {type(row).__name__}, not an object")
    check_columns(tuple(row), required, "keys", file, where=f"{where}: ")
    return row


def _json_rows(file: Path, required: Sequence[str]) -> Rows:
    """One array of objects, or one object per line: both occur as .json."""
    first = next((line for line in _lines(file) if line.strip()), "").strip()
    try:
        is_lines = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_lines = False
    if is_lines or not first:
        yield from _json_lines(file, required)
        return
    found = _parsed(file, _WHOLE, "".join(_lines(file)))
    if not isinstance(found, list):
        keys = f" with the keys {', '.join(found)}" if isinstance(found, dict) else ""
        raise DataError(
            f"it is one JSON {type(found).__name__}{keys}, not rows.",
            field="data",
            value=str(file),
            fix="Use an array of objects, or one object per line.",
        )
    for number, row in enumerate(found, 1):
        yield f"row {number}", _row(file, f"row {number}", row, required)


def _separated(separator: str) -> Callable[[Path, Sequence[str]], Rows]:
    """Rows under a header; every cell is text."""

    def rows(file: Path, required: Sequence[str]) -> Rows:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell may be a book
        reader = csv.reader(_lines(file), delimiter=separator, strict=True)
        try:
            header = next(reader, None)
            if header is None:
                return
            check_columns(header, required, "columns", file)
            _check_unique(file, header, "line 1: ")
            for cells in reader:
                if not cells:
                    continue
                where = f"line {reader.line_num}"
                if len(cells) != len(header):
                    raise _bad_row(file, where, f"{len(cells)} cells, but the header has {len(header)}")
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(
                f"line {reader.line_num}: not {'CSV' if separator == ',' else 'TSV'} ({error}).",
                field="data",
                value=str(file),
                fix="Quote cells that contain quotation marks, or save the rows as .jsonl.",
            ) from error

    return rows


def _check_unique(file: Path, names: Sequence[str], where: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        fix = "Keep one of the two, or rename the other."
        raise DataError(f"{where}two columns are called {twice!r}.", field="data", value=str(file), fix=fix)


def _bad_row(file: Path, where: str, problem: str) -> DataError:
    return DataError(f"{where}: {problem}.", field="data", value=str(file), fix=FORM)


# -- tables ----------------------------------------------------------------------------------------------------------


def _parquet_rows(file: Path, required: Sequence[str], optional: Sequence[str] | None) -> Rows:
    parquet = import_module("pyarrow.parquet")
    with _readable(file, "parquet"), parquet.ParquetFile(file) as table:
        columns = _chosen(file, table.schema_arrow.names, required, optional)
        yield from _numbered(table.iter_batches(batch_size=1024, columns=columns))


def _arrow_rows(file: Path, required: Sequence[str], optional: Sequence[str] | None) -> Rows:
    """`datasets` saves streams to disk; others write files."""
    pyarrow = import_module("pyarrow")
    with _readable(file, "arrow"), pyarrow.memory_map(str(file)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = reader = pyarrow.ipc.open_stream(source)
        columns = _chosen(file, reader.schema.names, required, optional)
        yield from _numbered(part for batch in batches for part in _parts(batch.select(columns)))


def _parts(batch: Any) -> Iterator[Any]:
    return (batch.slice(start, 1024) for start in range(0, len(batch), 1024))


def _chosen(file: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str] | None) -> list[str]:
    check_columns(names, required, "columns", file)
    _check_unique(file, names, "")
    wanted = names if optional is None else (*required, *optional)
    return [name for name in dict.fromkeys(wanted) if name in names]


def _numbered(batches: Iterable[Any]) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row


@contextmanager
def _readable(file: Path, kind: str) -> Iterator[None]:
    pyarrow = import_module("pyarrow")
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable {kind} file ({error}).", field="data", value=str(file)) from error
