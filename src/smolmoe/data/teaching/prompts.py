"""Prompts from a file, and what is to be asked for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from smolmoe.data.text import read_rows
from smolmoe.errors import DataError
from smolmoe.recipe.teach import TeachRecipe


@dataclass(frozen=True)
class Prompt:
    """A row of the file: its number from 0, its prompt, and all its columns."""

    row: int
    text: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One request: the same prompt, options and sample give the same `id`, whichever rows they stand in."""

    id: str
    prompt: str
    row: int  # the first that asks it
    sample: int


def read_prompts(recipe: TeachRecipe) -> list[Prompt]:
    """The prompts of a file, in its order; duplicates are kept.

    Raises:
        DataError: no such file or column, a prompt that is empty or no text, no prompts.
    """
    path = recipe.prompts.expanduser()
    column = "text" if path.suffix == ".txt" else recipe.prompt_column
    prompts: list[Prompt] = []
    for where, row in read_rows(path, (column,), _other_columns(path)):
        text = row[column]
        if problem := _problem(text):
            raise DataError(
                f'{where}: "{column}" {problem}.',
                field="prompts",
                value=str(path),
                fix="Take the row out, or name another column with --prompt-column.",
            )
        prompts.append(Prompt(len(prompts), text, row))
    if not prompts:
        raise DataError("there is no prompt in the file.", field="prompts", value=str(path))
    return prompts


def _problem(text: Any) -> str | None:
    """What is wrong with a prompt."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return "is empty"
    if not isinstance(text, str):
        return f"is a {type(text).__name__}, not text"
    return "holds half of a surrogate pair" if any("\ud800" <= letter <= "\udfff" for letter in text) else None


def _other_columns(path: Path) -> tuple[str, ...]:
    """Of a parquet file only the columns that are named are read; the others hold all of theirs in any case."""
    if path.suffix != ".parquet" or not path.is_file():
        return ()
    try:
        return tuple(import_module("pyarrow.parquet").read_schema(path).names)
    except (import_module("pyarrow").ArrowException, OSError):
        return ()  # read_rows says what is wrong with it


def questions_of(prompts: list[Prompt], recipe: TeachRecipe) -> Iterator[Question]:
    """What to ask, in the order of the rows: each prompt `samples` times, and no question twice."""
    asked = set()
    for prompt in prompts:
        for sample in range(recipe.samples):
            name = identity(prompt.text, sample, recipe)
            if name not in asked:
                asked.add(name)
                yield Question(name, prompt.text, prompt.row, sample)


def identity(prompt: str, sample: int, recipe: TeachRecipe) -> str:
    """Digest of a prompt, of the options that its answer follows from, and of which sample it is."""
    asked = json.dumps({"prompt": prompt, "sample": sample, **recipe.sampling()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def messages_of(prompt: str, recipe: TeachRecipe) -> list[dict[str, str]]:
    """The conversation that is sent."""
    system = [{"role": "system", "content": recipe.system}] if recipe.system else []
    return [*system, {"role": "user", "content": prompt}]


def digest_of(prompts: list[Prompt]) -> str:
    """sha256 over the prompts, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(hashlib.sha256(prompt.text.encode()).digest())
    return digest.hexdigest()
