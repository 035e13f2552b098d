"""Rows with all their columns, from all sources that training can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.data.folders import DataFiles
from smolmoe.data.formats import check_columns, rows_of
from smolmoe.data.presets import EMBEDDED, Preset, documents_of, find_form, find_preset
from smolmoe.data.sources import (
    Source,
    data_set_form,
    folder_domain,
    local_files,
    open_data_set,
    open_source,
    template_of,
    text_column,
    with_hub_errors,
)
from smolmoe.errors import DataError
from smolmoe.recipe.data import SourceRecipe


@dataclass(frozen=True)
class Row:
    """A row and its place.

    Attributes:
        origin: its file or data set.
        number: of its line, row or paragraph there, from 1.
        values: column -> value.
        text: name of its text column.
    """

    origin: str
    number: int
    values: dict[str, Any]
    text: str

    def string(self, column: str) -> str | None:
        """A cell of text; None if the column is missing or empty.

        Raises:
            DataError: it is not text.
        """
        value = self.values.get(column)
        if value != value:  # untyped tables have NaN for empty cells
            return None
        if value is not None and not isinstance(value, str):
            raise DataError(f'"{column}" is a {type(value).__name__}, not a string.', field="data", value=self.place)
        return value

    @property
    def is_nothing(self) -> bool:
        """Whether all columns are empty."""
        return all(value is None or value != value for value in self.values.values())

    @property
    def place(self) -> str:
        return f"{self.origin}, row {self.number}"


@dataclass(frozen=True)
class RowSource:
    """Rows, from the start at each call of `rows`; label, identity and files are those of the source."""

    label: str
    identity: dict[str, Any]
    rows: Callable[[], Iterator[Row]]
    files: DataFiles | None = None

    def to_json(self) -> dict[str, Any]:
        files = {} if self.files is None else {"files": self.files.to_json()}
        return {"label": self.label, "identity": self.identity, **files}


def open_rows(recipe: SourceRecipe, *, quiet: bool = False) -> RowSource:
    """Find and identify a source as `open_source` does, and read all columns of its rows.

    Rows of a preset keep the columns of its data set and get the document as `text` and its `domain`; if several rows
    make one document, its row has only these. A `domain` of the recipe replaces the row's.

    Raises:
        DataError, HubError: as `open_source` does; a row lacks the text's column.
    """
    source = open_source(recipe, quiet=quiet)
    path = expanded(str(recipe.path))
    if recipe.path is not None and path.exists():
        rows = _file_rows(recipe, path)
    elif recipe.preset is not None:
        rows = _preset_rows(recipe, source)
    else:
        rows = _hub_rows(recipe, str(recipe.path), recipe.name, recipe.split or "train")
    return RowSource(source.label, source.identity, lambda: _limited(recipe, rows()), source.files)


def _limited(recipe: SourceRecipe, rows: Iterator[Row]) -> Iterator[Row]:
    with_text = 0
    for row in rows:
        with_text += bool((row.string(row.text) or "").strip())
        if recipe.rows is not None and with_text > recipe.rows:
            return
        if recipe.domain is not None:
            row.values[recipe.domain_column] = recipe.domain
        yield row


def _file_rows(recipe: SourceRecipe, path: Path) -> Callable[[], Iterator[Row]]:
    found, kinds = local_files(recipe, path)

    def rows() -> Iterator[Row]:
        for (kind, folder), files in groupby(
            found.files, key=lambda file: (kinds[file], folder_domain(recipe, path, file))
        ):
            for row in of_one_kind(kind, list(files)):
                if folder is not None:
                    row.values[recipe.domain_column] = folder
                yield row

    def of_one_kind(kind: str | None, files: list[Path]) -> Iterator[Row]:
        form = None if kind is None else find_form(kind)
        if kind is None or form is None:
            yield from chain.from_iterable(_rows_of(file, recipe) for file in files)
        elif form.joins_rows:
            source = open_source(recipe.model_copy(update={"preset": kind, "rows": None}), quiet=True)
            yield from _joined(source)
        else:
            raw = (_row(file, *found, "text") for file in files for found in rows_of(file, form.columns, None))
            yield from with_documents(kind, raw, recipe)

    return rows


def _rows_of(file: Path, recipe: SourceRecipe) -> Iterator[Row]:
    text = text_column(file, recipe)
    for where, values in rows_of(file, (text,), None):
        if text != recipe.text:  # all rows get their text in the same column
            values = {recipe.text: values[text]}
        yield _row(file, where, values, recipe.text)


def _row(file: Path, where: str, values: dict[str, Any], text: str) -> Row:
    return Row(str(file), int(where.rpartition(" ")[2]), values, text)


def _preset_rows(recipe: SourceRecipe, source: Source) -> Callable[[], Iterator[Row]]:
    preset = None if recipe.preset == EMBEDDED else find_preset(str(recipe.preset))
    if preset is not None and not preset.joins_rows:
        raw = _hub_rows(recipe, preset.path, recipe.name or preset.name, recipe.split or preset.split, preset)
        return lambda: with_documents(str(recipe.preset), raw(), recipe)

    return lambda: _joined(source)


def _joined(source: Source) -> Iterator[Row]:
    """Documents, as rows without other columns."""
    for number, document in enumerate(source.documents(), 1):
        yield Row(source.label, number, {"text": document.text, "domain": document.domain}, "text")


def with_documents(form: str, rows: Iterator[Row], recipe: SourceRecipe) -> Iterator[Row]:
    """The rows of a form, each with its document as `text`; None for rows without one."""
    options = {"tokenizer": template_of(recipe), "domain_column": recipe.domain_column}
    for row in rows:
        try:
            document = next(documents_of(form, [row.values], **options), None)
        except DataError as error:
            raise DataError(error.message, field="data", value=row.place, fix=error.fix) from error
        found = {"text": None if document is None else document.text, "domain": document and document.domain}
        yield Row(row.origin, row.number, {**row.values, **found}, "text")


def _hub_rows(
    recipe: SourceRecipe, path: str, name: str | None, split: str, preset: Preset | None = None
) -> Callable[[], Iterator[Row]]:
    """Rows of a data set that `open_source` has found."""

    def rows() -> Iterator[Row]:
        found, _ = open_data_set(path, name, split, recipe)
        kind = None if preset else data_set_form(recipe, found)
        form = preset if kind is None else find_form(kind)
        raw = read(found, form.columns if form else (recipe.text,))
        yield from raw if kind is None else with_documents(kind, raw, recipe)

    def read(found: Any, needed: tuple[str, ...]) -> Iterator[Row]:
        for number, values in enumerate(with_hub_errors(path, iter(found)), 1):
            check_columns(tuple(values), needed, "columns", path, where=f"row {number}: ")
            yield Row(path, number, dict(values), recipe.text)

    return rows


def group_of(row: Row, by: tuple[str, ...]) -> tuple[str, ...]:
    """A row's values of the grouping columns, as text; an empty one is "".

    Raises:
        DataError: the row lacks a column, or its value is a list or an object.
    """
    check_columns(tuple(row.values), by, "columns", row.origin, where=f"row {row.number}: ")
    return tuple(_label(row, column) for column in by)


def _label(row: Row, column: str) -> str:
    value = row.values[column]
    if isinstance(value, list | Mapping):
        raise DataError(
            f'"{column}" is a {type(value).__name__}, which cannot be used for grouping.', field="by", value=row.place
        )
    return "" if value is None or value != value else str(value)
