"""Rows with all their columns, from every kind of source that training reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from smolmoe.data.presets import EMBEDDED, Preset, documents_of, find_preset
from smolmoe.data.sources import Source, open_source
from smolmoe.data.text import READABLE, check_columns, read_rows
from smolmoe.errors import DataError, HubError
from smolmoe.recipe.data import SourceRecipe


@dataclass(frozen=True)
class Row:
    """A row and where it stands.

    Attributes:
        origin: its file or data set.
        number: of its line, row or paragraph there, from 1.
        values: column -> value.
        text: name of the column that holds its text.
    """

    origin: str
    number: int
    values: dict[str, Any]
    text: str

    def string(self, column: str) -> str | None:
        """A cell of text; None where the column is not there or empty.

        Raises:
            DataError: it holds something else.
        """
        value = self.values.get(column)
        if value is not None and not isinstance(value, str):
            raise DataError(f'"{column}" is a {type(value).__name__}, not a string.', field="data", value=self.place)
        return value

    @property
    def place(self) -> str:
        return f"{self.origin}, row {self.number}"


@dataclass(frozen=True)
class RowSource:
    """Rows, from the start at each call of `rows`; label and identity are those of the source's documents."""

    label: str
    identity: dict[str, Any]
    rows: Callable[[], Iterator[Row]]


def open_rows(recipe: SourceRecipe) -> RowSource:
    """Find and identify a source, as `open_source` does, of which not only the text is wanted.

    Rows of a preset keep the columns of its data set and have its document as `text` and its `domain`; where several
    rows make one document, it has nothing else. A `domain` of the recipe takes the place of the row's.

    Raises:
        DataError, HubError: as `open_source` does; a row lacks the text's column.
    """
    source = open_source(recipe)
    if recipe.preset is not None:
        rows = _preset_rows(recipe, source)
    elif Path(str(recipe.path)).expanduser().exists():
        rows = _file_rows(recipe, Path(str(recipe.path)).expanduser())
    else:
        rows = _hub_rows(recipe, str(recipe.path), recipe.name, recipe.split or "train")
    return RowSource(source.label, source.identity, lambda: _limited(recipe, rows()))


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
    files = sorted(file for file in path.rglob("*") if file.suffix in READABLE) if path.is_dir() else [path]

    def rows() -> Iterator[Row]:
        for file in files:
            text = "text" if file.suffix == ".txt" else recipe.text
            for where, values in read_rows(file, (text,), _columns(file)):
                if file.suffix == ".txt":  # all rows are to have their text in the same column
                    values = {recipe.text: values[text]}
                yield Row(str(file), int(where.rpartition(" ")[2]), values, recipe.text)

    return rows


def _columns(file: Path) -> list[str]:
    """Names of the columns that must be asked for."""
    if file.suffix != ".parquet":
        return []
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    try:
        return [str(name) for name in parquet.read_schema(file).names]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file ({error}).", field="data", value=str(file)) from error


def _preset_rows(recipe: SourceRecipe, source: Source) -> Callable[[], Iterator[Row]]:
    preset = None if recipe.preset == EMBEDDED else find_preset(str(recipe.preset))
    if preset is not None and not preset.joins_rows:
        raw = _hub_rows(recipe, preset.path, recipe.name or preset.name, recipe.split or preset.split, preset)
        return lambda: with_documents(str(recipe.preset), raw())

    def rows() -> Iterator[Row]:
        for number, document in enumerate(source.documents(), 1):
            yield Row(source.label, number, {"text": document.text, "domain": document.domain}, "text")

    return rows


def with_documents(preset: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of a preset's data set, with the document that each holds; rows that hold none are passed over."""
    for row in rows:
        for document in documents_of(preset, [row.values]):
            values = {**row.values, "text": document.text, "domain": document.domain}
            yield Row(row.origin, row.number, values, "text")


def _hub_rows(
    recipe: SourceRecipe, path: str, name: str | None, split: str, preset: Preset | None = None
) -> Callable[[], Iterator[Row]]:
    """Rows of a data set that `open_source` has found."""
    needed = preset.columns if preset else (recipe.text,)

    def rows() -> Iterator[Row]:
        datasets = import_module("datasets")
        try:
            found = datasets.load_dataset(path, name, split=split, revision=recipe.revision, streaming=recipe.streaming)
            if recipe.streaming and recipe.shuffle_buffer:
                found = found.shuffle(seed=0, buffer_size=recipe.shuffle_buffer)
            for number, values in enumerate(found, 1):
                check_columns(tuple(values), needed, "columns", path, where=f"row {number}: ")
                yield Row(path, number, dict(values), recipe.text)
        except (OSError, datasets.exceptions.DatasetsError) as error:
            raise HubError(
                f"the data set cannot be read ({type(error).__name__}).",
                field="path",
                value=path,
                fix="Check the connection to huggingface.co, or save the data as .jsonl or .parquet and give its path.",
            ) from error

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
            f'"{column}" is a {type(value).__name__}, by which nothing can be grouped.', field="by", value=row.place
        )
    return "" if value is None else str(value)
