"""Prompts from a file, and the questions to ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.data.folders import find_files, say_unread
from smolmoe.data.formats import rows_of, suffix_of
from smolmoe.data.forms import Conversation, Form
from smolmoe.data.presets import find_form, form_of
from smolmoe.data.sources import first_columns
from smolmoe.data.tally import Tally, whole_text
from smolmoe.data.text import is_empty
from smolmoe.errors import DataError
from smolmoe.recipe.teach import TeachRecipe

NO_PROMPT = "rows without a prompt skipped"
_SYSTEM = ("system", "system_prompt")


@dataclass(frozen=True)
class Prompt:
    """A row of the file: its number from 0, its prompt, and all its columns."""

    row: int
    text: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One request; equal prompts, options and samples have the same `id`, whatever their rows."""

    id: str
    prompt: str
    row: int  # the first with this prompt
    sample: int


def read_prompts(recipe: TeachRecipe, tally: Tally | None = None) -> list[Prompt]:
    """The prompts of a file or folder, in its order; duplicates are kept, rows without a prompt skipped.

    Rows of a known data set (Dolly, GSM8K, ...), identified by their columns, give its questions.

    Args:
        tally: takes the skipped rows; without one they are logged.

    Raises:
        DataError: no such file or column, a prompt that is not text, no prompts.
    """
    path = recipe.prompts
    own = tally if tally is not None else Tally()
    prompts: list[Prompt] = []
    for where, text, row in _rows(path, recipe.prompt_column):
        if is_empty(text):
            own.add(NO_PROMPT, where)
            continue
        if not isinstance(text, str):
            raise DataError(
                f'{where}: "{recipe.prompt_column}" is a {type(text).__name__}, not text.',
                field="prompts",
                value=str(path),
                fix="Remove the row, or set `prompt_column` to another column.",
            )
        for name in _SYSTEM:
            if name in row and not is_empty(row[name]) and row[name] not in text:
                own.add(f'rows have a column "{name}", which is not sent (see `system`)', where)
        prompts.append(Prompt(len(prompts), whole_text(text, own, where), row))
    if not prompts:
        raise DataError("the file contains no prompt.", field="prompts", value=str(path))
    if tally is None:
        own.log(str(path))
    return prompts


def _rows(path: Path, column: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The place of each row, its prompt, and all its columns."""
    if not path.exists():
        raise DataError("no such file.", field="prompts", value=str(path), fix="Use the path of a file.")
    found = find_files(path)
    say_unread(found)
    for file in found.files:
        where = f"{file.name}, " if path.is_dir() else ""
        kind = None if column != "prompt" else form_of(first_columns(file), "prompt")
        preset = None if kind is None else find_form(kind)
        if preset is not None and preset.conversations is not None:
            yield from _asked(file, preset, where)
            continue
        named = "text" if str(suffix_of(file)).startswith(".txt") else column
        for place, row in rows_of(file, (named,), None):
            yield where + place, row[named], row


def _asked(file: Path, preset: Form, where: str) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """The questions of a known data set: the first one of each conversation, with what precedes it."""
    rows = rows_of(file, preset.columns, None)
    if preset.joins_rows:
        assert preset.conversations is not None
        for number, one in enumerate(preset.conversations(row for _, row in rows), 1):
            yield f"{where}conversation {number}", _question(one), {"domain": one.domain}
        return
    for place, row in rows:
        assert preset.conversations is not None
        for one in preset.conversations([row]):
            yield where + place, _question(one), row


def _question(one: Conversation) -> str | None:
    """The turns up to the first one that is not the system's or the assistant's."""
    before = []
    for role, text in one.turns:
        before.append(text)
        if role not in ("system", "assistant"):
            return "\n".join(filter(None, before)) if text else None
    return None


def questions_of(prompts: list[Prompt], recipe: TeachRecipe) -> Iterator[Question]:
    """The questions in the order of the rows: each prompt `samples` times, without duplicates."""
    asked = set()
    for prompt in prompts:
        for sample in range(recipe.samples):
            name = identity(prompt.text, sample, recipe)
            if name not in asked:
                asked.add(name)
                yield Question(name, prompt.text, prompt.row, sample)


def identity(prompt: str, sample: int, recipe: TeachRecipe) -> str:
    """Digest of a prompt, the options of its answer, and the number of the sample."""
    asked = json.dumps({"prompt": prompt, "sample": sample, **recipe.sampling()}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode()).hexdigest()[:32]


def messages_of(prompt: str, recipe: TeachRecipe) -> list[dict[str, str]]:
    """The conversation to send."""
    system = [{"role": "system", "content": recipe.system}] if recipe.system else []
    return [*system, {"role": "user", "content": prompt}]


def digest_of(prompts: list[Prompt]) -> str:
    """sha256 over the prompts, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(hashlib.sha256(prompt.text.encode()).digest())
    return digest.hexdigest()
