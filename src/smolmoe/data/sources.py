"""Sources of documents: presets, local files and folders, hub data sets, the embedded corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from smolmoe.data.embedded import embedded_corpus
from smolmoe.data.presets import EMBEDDED, Preset, documents_of, find_preset
from smolmoe.data.text import READABLE, Document, check_columns, read_rows
from smolmoe.errors import DataError, HubError, SmolmoeError
from smolmoe.hub_access import why_not
from smolmoe.recipe.data import SourceRecipe

# A name that ends in one of these is meant as a file, whether or not it is there.
_FILE_SUFFIXES = (*READABLE, ".json", ".csv", ".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """Documents, and what they follow from.

    Attributes:
        label: what to call it in messages.
        identity: the same for the same documents: hashes of contents, and the options that choose among them.
        documents: goes through the documents, from the start at each call.
        expected: their number, where it is known beforehand.
        streamed: read in its own order, and only as far as needed.
    """

    label: str
    identity: dict[str, Any]
    documents: Callable[[], Iterator[Document]]
    expected: int | None = None
    streamed: bool = False


def open_source(recipe: SourceRecipe) -> Source:
    """Find a source and identify it; its text is read when its documents are asked for.

    A path that exists is local; one that looks like a file's and does not exist is an error; any other is a data set
    on the hub. Texts that are empty or missing are passed over.

    Raises:
        DataError: no such file or preset, no readable file in the folder, no such column.
        HubError: the data set cannot be had from the hub.
    """
    if recipe.preset == EMBEDDED:
        source = _embedded()
    elif recipe.preset is not None:
        preset = find_preset(recipe.preset)
        source = _data_set(recipe, preset.path, recipe.name or preset.name, recipe.split or preset.split, preset)
    else:
        assert recipe.path is not None  # the recipe sees to it
        path = Path(recipe.path).expanduser()
        if path.exists():
            source = _local(recipe, path)
        elif _looks_like_a_file(recipe.path):
            raise DataError(
                "there is no such file or folder.",
                field="path",
                value=recipe.path,
                fix="Give the path of a text file or of a folder of them, or the id of a hub data set (owner/name).",
            )
        else:
            source = _data_set(recipe, recipe.path, recipe.name, recipe.split or "train", None)
    return _limited(source, recipe)


def _limited(source: Source, recipe: SourceRecipe) -> Source:
    """The first `rows` documents, with the recipe's domain."""

    def documents() -> Iterator[Document]:
        for document in islice(source.documents(), recipe.rows):
            yield Document(document.text, recipe.domain) if recipe.domain is not None else document

    known = [count for count in (source.expected, recipe.rows) if count is not None]
    identity = {**source.identity, "rows": recipe.rows, "domain": recipe.domain}
    return Source(source.label, identity, documents, min(known, default=None), source.streamed)


@cache
def _embedded() -> Source:
    """Made once a process: it takes seconds."""
    # A share of 0 holds nothing out: the split is the caller's, by the same rule.
    documents = embedded_corpus(validation=0.0).train
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(f"{document.domain}\n{document.text}".encode()).digest())
    return Source(EMBEDDED, {"embedded": digest.hexdigest()}, partial(iter, documents), len(documents))


def _looks_like_a_file(path: str) -> bool:
    return path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1 or path.endswith(_FILE_SUFFIXES)


def _local(recipe: SourceRecipe, path: Path) -> Source:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in READABLE and file.is_file())
    else:
        files = [path]
    if not files:
        raise DataError(
            "there is no text file in this folder.",
            field="path",
            value=str(path),
            fix=f"It must hold files of {', '.join(READABLE)}.",
        )

    def documents() -> Iterator[Document]:
        for file in files:
            # Paragraphs of a .txt are its only column, whatever the other files call theirs.
            text = "text" if file.suffix == ".txt" else recipe.text
            for where, row in read_rows(file, (text,), (recipe.domain_column,)):
                if document := _document(row, text, recipe.domain_column, f"{where}: ", file):
                    yield document

    contents = [[file.suffix, _file_hash(file)] for file in files]
    return Source(str(path), {"files": contents, "columns": [recipe.text, recipe.domain_column]}, documents)


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _document(row: Mapping[str, Any], column: str, domain_column: str, where: str, origin: object) -> Document | None:
    """The document in a row; None where its text is empty."""
    text, domain = row[column], row.get(domain_column)
    if text is None or (isinstance(text, str) and not text.strip()):
        return None
    for name, value in ((column, text), (domain_column, domain)):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f'{where}"{name}" is a {type(value).__name__}, not a string.', field="data", value=str(origin)
            )
    return Document(text, domain or None)


def _data_set(recipe: SourceRecipe, path: str, name: str | None, split: str, preset: Preset | None) -> Source:
    """A data set that the `datasets` library finds under `path`: on the hub, or a folder of files of that form."""
    if preset is not None and preset.joins_rows and recipe.shuffle_buffer:
        raise DataError(
            "its rows are parts of documents, which shuffling would mix up.",
            field="shuffle_buffer",
            value=recipe.shuffle_buffer,
            fix="Leave shuffle_buffer at 0.",
        )
    rows, hashed = open_data_set(path, name, split, recipe)
    there = rows.column_names
    if there is not None:
        required, optional = (preset.columns, preset.optional) if preset else ((recipe.text,), (recipe.domain_column,))
        check_columns(there, required, "columns", path)
        rows = rows.select_columns([column for column in there if column in (*required, *optional)])

    def documents() -> Iterator[Document]:
        with_errors = with_hub_errors(path, iter(rows))
        if recipe.preset is not None:
            yield from documents_of(recipe.preset, with_errors)
            return
        for number, row in enumerate(with_errors, 1):
            check_columns(tuple(row), (recipe.text,), "columns", path, where=f"row {number}: ")
            if document := _document(row, recipe.text, recipe.domain_column, f"row {number}: ", path):
                yield document

    identity: dict[str, Any] = {"hashed": hashed, "split": split, "preset": recipe.preset}
    if preset is None:
        identity["columns"] = [recipe.text, recipe.domain_column]
    if recipe.streaming:
        identity["shuffle_buffer"] = recipe.shuffle_buffer
    counted = not recipe.streaming and not (preset and preset.joins_rows)
    return Source(path, identity, documents, len(rows) if counted else None, recipe.streaming)


def open_data_set(path: str, name: str | None, split: str, recipe: SourceRecipe) -> tuple[Any, str]:
    """The rows, and a hash of the data set's configuration and files (on the hub: of their commit)."""
    datasets = import_module("datasets")
    try:
        builder = datasets.load_dataset_builder(path, name, revision=recipe.revision)
        rows = datasets.load_dataset(path, name, split=split, revision=recipe.revision, streaming=recipe.streaming)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise HubError(
            f"there is no such data set on the hub, or you may not read it ({_first_line(error)}).",
            field="path",
            value=path,
            fix="Check the name (owner/name); for a private or gated data set log in with `hf auth login`.",
        ) from error
    except ValueError as error:  # says which splits or configurations there are
        raise DataError(
            f"{_first_line(error)}",
            field="name" if "config" in str(error).lower() else "split",
            value=name if "config" in str(error).lower() else split,
            fix="Set `name` and `split` of this source to ones that the data set has.",
        ) from error
    except Exception as error:  # the hub client raises many kinds; each means that the data set cannot be had
        raise _unreachable(path, error) from error
    if recipe.streaming and recipe.shuffle_buffer:
        # The seed is fixed: it decides which documents a run reads, not the order that the recipe's seed gives them.
        rows = rows.shuffle(seed=0, buffer_size=recipe.shuffle_buffer)
    return rows, f"{builder.hash}/{builder.config.name}"


def with_hub_errors(path: str, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows; what breaks while they are read becomes a HubError."""
    try:
        yield from rows
    except SmolmoeError:
        raise
    except Exception as error:  # as above, and what breaks in its files
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> HubError:
    reason, fix = why_not(error)
    return HubError(
        f"the data set cannot be read: {reason}.",
        field="path",
        value=path,
        fix=f"{fix} Or save the data as .jsonl or .parquet and give its path.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
