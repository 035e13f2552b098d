"""Sources of documents: presets, local files and folders, hub data sets, the embedded corpus."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.core.hub_access import why_not
from smolmoe.core.words import first_line
from smolmoe.data.embedded import embedded_corpus
from smolmoe.data.folders import NAMED, DataFiles, find_files, say_unread
from smolmoe.data.formats import FORM, WHOLE, check_columns, rows_of, suffix_of
from smolmoe.data.forms import Form
from smolmoe.data.forms import read as read_form
from smolmoe.data.messages import has_template
from smolmoe.data.presets import EMBEDDED, documents_of, find_form, find_preset, form_of
from smolmoe.data.tally import NO_DOMAIN, NO_TEXT, Tally, whole
from smolmoe.data.text import Document, is_empty
from smolmoe.errors import DataError, HubError, RequestError, SmolmoeError
from smolmoe.recipe.data import HUB, SourceRecipe

logger = logging.getLogger(__name__)

Documents = Callable[[Tally], Iterator[Document]]


@dataclass(frozen=True)
class Source:
    """A source of documents, and what identifies it.

    Attributes:
        label: its name in messages.
        identity: equal for equal documents: hashes of contents, and the options that select documents.
        read: iterates over the documents, from the start at each call, and tallies those it skips.
        expected: their number, if it is known beforehand.
        streamed: read in its own order, and only as far as needed.
        files: of a local source, read and unread.
    """

    label: str
    identity: dict[str, Any]
    read: Documents
    expected: int | None = None
    streamed: bool = False
    files: DataFiles | None = None

    def documents(self, tally: Tally | None = None) -> Iterator[Document]:
        """The documents, from the start at each call.

        Args:
            tally: takes the skipped documents; without one they are logged at the end.
        """
        if tally is not None:
            return self.read(tally)
        return self._tallied()

    def _tallied(self) -> Iterator[Document]:
        tally = Tally()
        try:
            yield from self.read(tally)
        finally:
            tally.log(self.label)


def open_source(recipe: SourceRecipe, *, quiet: bool = False) -> Source:
    """Find a source and identify it; its text is read later, with its documents.

    A path that exists is local; one that looks like a file's and does not exist is an error; any other is a data set
    on the hub. Empty and missing texts are skipped and tallied.

    Args:
        quiet: do not warn of unread files of a folder, for callers that open a source again.

    Raises:
        DataError: no such file or preset, no readable file in the folder, no such column.
        HubError: the data set is not available from the hub.
    """
    if recipe.preset == EMBEDDED:
        source = _embedded()
    elif recipe.path is None:
        assert recipe.preset is not None  # the recipe sees to it
        preset = find_preset(recipe.preset)
        source = _data_set(recipe, preset.path, recipe.name or preset.name, recipe.split or preset.split, preset)
    elif recipe.path.startswith(HUB):
        source = _data_set(recipe, recipe.path, recipe.name, recipe.split or "train", _schema(recipe))
    else:
        path = expanded(recipe.path)
        if path.exists():
            source = _local(recipe, path, quiet)
        elif _looks_like_a_file(recipe.path):
            raise _no_such_file(recipe.path)
        else:
            source = _data_set(recipe, recipe.path, recipe.name, recipe.split or "train", _schema(recipe))
    return _limited(source, recipe)


def _schema(recipe: SourceRecipe) -> Form | None:
    return None if recipe.preset is None else find_form(recipe.preset)


def with_domains(source: Source, by: str) -> Iterator[Document]:
    """The documents of a source that have a domain, each with its place; the others are skipped and counted.

    Args:
        by: the requested column of the domain.

    Raises:
        DataError: no document has one.
    """
    tally, tagged = Tally(), False
    for number, document in enumerate(source.documents(tally), 1):
        place = document.place or f"document {number}"
        if document.domain is None:
            tally.add(NO_DOMAIN, place)
        else:
            tagged = True
            yield replace(document, place=place)
    if tally.counts[NO_DOMAIN] and not tagged:
        raise DataError(
            f'no row has a domain (no "{by}").',
            field="data",
            value=tally.first[NO_DOMAIN],
            fix="Tag the rows, or set `by` to the column of the tag.",
        )
    tally.log(source.label)


def holds_conversations(recipe: SourceRecipe) -> bool:
    """Whether rows of a source are, or may be, conversations: of a data set that is not here nothing is known.

    Raises:
        DataError: no such file, or its first row cannot be read.
    """
    if recipe.path is None or recipe.preset is not None:
        return recipe.preset != EMBEDDED and find_form(str(recipe.preset)).conversations is not None
    path = expanded(recipe.path)
    if recipe.path.startswith(HUB) or not path.exists():
        return True
    return any(kind and find_form(kind).conversations for kind in local_files(recipe, path)[1].values())


def look_at(recipe: SourceRecipe) -> None:
    """Find the files of a local source and warn of unread ones, without reading the text.

    Raises:
        DataError: no such file or preset, or no readable file in the folder.
    """
    if recipe.preset is not None and recipe.preset != EMBEDDED:
        _schema(recipe)
    if recipe.path is None or recipe.path.startswith(HUB):
        return
    path = expanded(recipe.path)
    if path.exists():
        _files(recipe, path, quiet=False)
    elif _looks_like_a_file(recipe.path):
        raise _no_such_file(recipe.path)


def _no_such_file(path: str) -> DataError:
    return DataError(
        "no such file or folder.",
        field="path",
        value=path,
        fix="Give the path of a text file or of a folder of them, or the id of a hub data set (owner/name).",
    )


def _limited(source: Source, recipe: SourceRecipe) -> Source:
    """The first `rows` documents, with the recipe's domain."""

    def read(tally: Tally) -> Iterator[Document]:
        for document in islice(source.read(tally), recipe.rows):
            yield replace(document, domain=recipe.domain) if recipe.domain is not None else document

    known = [count for count in (source.expected, recipe.rows) if count is not None]
    identity = {**source.identity, "rows": recipe.rows, "domain": recipe.domain}
    return replace(source, identity=identity, read=read, expected=min(known, default=None))


@cache
def _embedded() -> Source:
    """Made once per process: it takes seconds."""
    # A share of 0 holds nothing out: the caller splits by the same rule.
    documents = embedded_corpus(validation=0.0).train
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(f"{document.domain}\n{document.text}".encode()).digest())
    return Source(EMBEDDED, {"embedded": digest.hexdigest()}, lambda tally: iter(documents), len(documents))


def _looks_like_a_file(path: str) -> bool:
    """Whether a name means a file, existing or not: it ends in a format's suffix, or looks like a path."""
    is_named = suffix_of(path) is not None or path.lower().endswith((".gz", ".zst"))
    return path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1 or is_named


def _local(recipe: SourceRecipe, path: Path, quiet: bool) -> Source:
    found, kinds = _files(recipe, path, quiet)

    def read(tally: Tally) -> Iterator[Document]:
        for (kind, folder), files in groupby(found.files, key=lambda file: (kinds[file], subfolder(file))):
            documents = _file_documents(recipe, kind, list(files), tally)
            yield from documents if folder is None else (replace(one, domain=folder) for one in documents)

    def subfolder(file: Path) -> str | None:
        return folder_domain(recipe, path, file)

    contents = [[suffix_of(file), file_hash(file)] for file in found.files]
    identity: dict[str, Any] = {"files": contents, "columns": [recipe.text, recipe.domain_column]}
    if any(kinds.values()):
        identity["presets"] = [kinds[file] for file in found.files]
        identity |= _template_identity(recipe)
    if recipe.by_folder:
        identity["folders"] = [subfolder(file) for file in found.files]
    return Source(str(path), identity, read, files=found)


def folder_domain(recipe: SourceRecipe, path: Path, file: Path) -> str | None:
    """The domain of a file below `path` by its subfolder; None if the recipe does not ask for it."""
    below = file.relative_to(path).parts if recipe.by_folder and file != path else ()
    return below[0] if len(below) > 1 else None


def _file_documents(recipe: SourceRecipe, kind: str | None, files: Sequence[Path], tally: Tally) -> Iterator[Document]:
    if kind is not None:
        yield from _form_documents(recipe, kind, files, tally)
        return
    for file in files:
        # Paragraphs of a .txt are its only column, whatever the other files call theirs.
        text = text_column(file, recipe)
        for where, row in rows_of(file, (text,), (recipe.domain_column,)):
            if document := _document(row, text, recipe.domain_column, where, file, tally):
                yield document


def _template_identity(recipe: SourceRecipe) -> dict[str, Any]:
    if recipe.chat_template is None:
        return {}
    template = json.dumps(template_of(recipe).chat_template, sort_keys=True)
    return {"chat_template": hashlib.sha256(template.encode()).hexdigest()}


def template_of(recipe: SourceRecipe) -> Any:
    """The tokenizer whose chat template renders a source's conversations; None for plain text.

    Raises:
        RequestError: the model has no chat template.
    """
    if recipe.chat_template is None:
        return None
    from smolmoe.moe.loading import find_tokenizer

    tokenizer = find_tokenizer(recipe.chat_template)
    if not has_template(tokenizer):
        raise RequestError(
            "its tokenizer has no chat template.",
            field="chat_template",
            value=recipe.chat_template,
            fix="Remove it, which renders conversations as plain text, or name a chat model.",
        )
    return tokenizer


def _files(recipe: SourceRecipe, path: Path, quiet: bool) -> tuple[DataFiles, dict[Path, str | None]]:
    found, kinds = local_files(recipe, path)
    if not quiet:
        say_unread(found)
        if recipe.preset is None:
            _say_presets(kinds)
    return found, kinds


def text_column(file: Path, recipe: SourceRecipe) -> str:
    """The column that holds a file's text: paragraphs and whole files have one column."""
    suffix = suffix_of(file)
    return "text" if suffix in WHOLE or str(suffix).startswith(".txt") else recipe.text


def local_files(recipe: SourceRecipe, path: Path) -> tuple[DataFiles, dict[Path, str | None]]:
    """The files of a local source, and each one's preset by its columns; None to read the recipe's text column.

    Raises:
        DataError: no text was found, or its first row cannot be read.
    """
    found = find_files(path)
    if recipe.preset is not None:
        find_form(recipe.preset)
        return found, dict.fromkeys(found.files, recipe.preset)
    kinds: dict[Path, str | None] = {}
    unread = dict(found.unread)
    for file in found.files:
        columns = first_columns(file)
        kinds[file] = form_of(columns) if recipe.text == "text" else None
        if kinds[file] is None and path.is_dir() and suffix_of(file) == ".json" and recipe.text not in columns:
            unread[file] = f'no column "{recipe.text}"'  # metadata
    files = tuple(file for file in found.files if file not in unread)
    return replace(found, files=files, unread=unread) if files else found, kinds


def _say_presets(kinds: Mapping[Path, str | None]) -> None:
    for name in sorted({kind for kind in kinds.values() if kind is not None}):
        preset, files = find_form(name), [file for file, kind in kinds.items() if kind == name]
        rest = [
            column for column in first_columns(files[0]) if column not in (*preset.columns, *preset.optional, "domain")
        ]
        logger.warning(
            "%s: judging by the columns, rows of %s (%s)%s.",
            ", ".join(file.name for file in files[:NAMED]) + (", ..." if files[NAMED:] else ""),
            name,
            ", ".join(preset.columns),
            f"; not used: {', '.join(rest)}" if rest else "",
        )


def first_columns(file: Path) -> tuple[str, ...]:
    """The columns of the first non-empty row."""
    return next((tuple(row) for _, row in rows_of(file, (), None) if row), ())


def _form_documents(recipe: SourceRecipe, kind: str, files: Sequence[Path], tally: Tally) -> Iterator[Document]:
    """The documents of files whose rows have a known form."""
    form, place = find_form(kind), ""
    options = {"tokenizer": template_of(recipe), "domain_column": recipe.domain_column}

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal place
        for file in files:
            for where, row in rows_of(file, form.columns, (*form.optional, recipe.domain_column)):
                place = f"{file}, {where}"
                yield row

    try:
        for document in read_form(form, rows(), **options):
            if document is None:
                tally.add(NO_TEXT, place)
            else:
                # A document of several rows appears after its last row, so `place` is not its own.
                yield whole(document if form.joins_rows else replace(document, place=place), tally, place)
    except DataError as error:
        hint = f"The first row has the form {kind}: put rows of other forms into other files."
        is_of_a_file = error.value in [str(file) for file in files]
        value = error.value if is_of_a_file else place
        raise DataError(error.message, field="data", value=value, fix=error.fix or hint) from error


def file_hash(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _document(
    row: Mapping[str, Any], column: str, domain_column: str, where: str, origin: object, tally: Tally
) -> Document | None:
    """The document in a row; None if its text is empty."""
    text, domain = row[column], row.get(domain_column)
    if is_empty(text):
        tally.add(NO_TEXT, f"{origin}, {where}")
        return None
    if not isinstance(text, str):
        problem = f'{where}: "{column}" is a {type(text).__name__}, not a string.'
        raise DataError(problem, field="data", value=str(origin), fix=FORM)
    place = f"{origin}, {where}"
    return whole(Document(text, label(domain, domain_column, where, origin), place), tally, place)


def label(value: Any, column: str, where: str, origin: object) -> str | None:
    """A domain as text, numbers included; None without a domain.

    Raises:
        DataError: it is a list or an object.
    """
    if isinstance(value, list | Mapping):
        problem = f'{where}: "{column}" is a {type(value).__name__}, not a string.'
        raise DataError(problem, field="data", value=str(origin), fix=FORM)
    return None if is_empty(value) else str(value)


def _data_set(recipe: SourceRecipe, path: str, name: str | None, split: str, preset: Form | None) -> Source:
    """A data set that the `datasets` library finds under `path`: on the hub, or a folder in its format."""
    path = path.removeprefix(HUB)
    if preset is not None and preset.joins_rows and recipe.shuffle_buffer:
        raise DataError(
            "its rows are parts of documents, which shuffling would mix.",
            field="shuffle_buffer",
            value=recipe.shuffle_buffer,
            fix="Set shuffle_buffer to 0.",
        )
    rows, hashed = open_data_set(path, name, split, recipe)
    kind = recipe.preset or data_set_form(recipe, rows)
    preset = preset or (None if kind is None else find_form(kind))
    required, optional = (preset.columns, preset.optional) if preset else ((recipe.text,), ())
    optional = (*optional, recipe.domain_column)
    rows = with_columns(rows, path, required, optional)

    def read(tally: Tally) -> Iterator[Document]:
        with_errors = with_hub_errors(path, iter(rows))
        if kind is not None:
            options = {"tokenizer": template_of(recipe), "domain_column": recipe.domain_column}
            yield from documents_of(kind, with_errors, tally, **options)
            return
        for number, row in enumerate(with_errors, 1):
            check_columns(tuple(row), (recipe.text,), "columns", path, where=f"row {number}: ")
            if document := _document(row, recipe.text, recipe.domain_column, f"row {number}", path, tally):
                yield document

    identity: dict[str, Any] = {"hashed": hashed, "split": split, "preset": kind}
    identity |= _template_identity(recipe)
    if preset is None:
        identity["columns"] = [recipe.text, recipe.domain_column]
    if recipe.streaming:
        identity["shuffle_buffer"] = recipe.shuffle_buffer
    counted = not recipe.streaming and not (preset and preset.joins_rows)
    return Source(path, identity, read, len(rows) if counted else None, recipe.streaming)


def data_set_form(recipe: SourceRecipe, rows: Any) -> str | None:
    """The form of a data set's rows by its columns; None to read the recipe's text column."""
    there = rows.column_names
    return form_of(there) if recipe.text == "text" and there is not None and "text" not in there else None


def with_columns(rows: Any, path: str, required: Sequence[str], optional: Sequence[str]) -> Any:
    """The rows of a data set with these columns alone, if it states its columns.

    Raises:
        DataError: a required column is missing.
    """
    if rows.column_names is None:
        return rows
    check_columns(rows.column_names, required, "columns", path)
    return rows.select_columns([name for name in rows.column_names if name in (*required, *optional)])


def open_data_set(path: str, name: str | None, split: str, recipe: SourceRecipe) -> tuple[Any, str]:
    """The rows, and a hash of the data set's configuration and files (on the hub: of their commit)."""
    datasets, path = import_module("datasets"), path.removeprefix(HUB)
    try:
        builder = datasets.load_dataset_builder(path, name, revision=recipe.revision)
        rows = datasets.load_dataset(path, name, split=split, revision=recipe.revision, streaming=recipe.streaming)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise HubError(
            f"no such data set on the hub, or no permission to read it ({first_line(error)}).",
            field="path",
            value=path,
            fix="Check the name (owner/name); for a private or gated data set log in with `hf auth login`.",
        ) from error
    except ValueError as error:  # names the existing splits or configurations
        raise DataError(
            f"{first_line(error)}",
            field="name" if "config" in str(error).lower() else "split",
            value=name if "config" in str(error).lower() else split,
            fix="Set `name` and `split` of this source to those of the data set.",
        ) from error
    except Exception as error:  # the hub client raises many kinds; each means that the data set cannot be loaded
        raise _unreachable(path, error) from error
    if recipe.streaming and recipe.shuffle_buffer:
        # The seed is fixed: it decides which documents a run reads, not the order that the recipe's seed gives them.
        rows = rows.shuffle(seed=0, buffer_size=recipe.shuffle_buffer)
    return rows, f"{builder.hash}/{builder.config.name}"


def with_hub_errors(path: str, rows: Iterator[Any]) -> Iterator[Any]:
    """The rows; an error while reading becomes a HubError."""
    try:
        yield from rows
    except SmolmoeError:
        raise
    except Exception as error:  # as above, and errors in its files
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> HubError:
    reason, fix = why_not(error)
    return HubError(
        f"the data set cannot be read: {reason}.",
        field="path",
        value=path,
        fix=f"{fix} Or save the data as .jsonl or .parquet and use its path.",
    )
