"""The column names of data sets for alignment, and the columns that identify a file's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolmoe.data.presets import PRESETS
from smolmoe.errors import DataError
from smolmoe.recipe.align import AlignDataRecipe

# Role -> column name in the data set; the columns in _TELLING identify a format.
_PAIR = {"chosen": "chosen", "rejected": "rejected"}
COLUMNS: dict[str, dict[str, str]] = {
    "coedit": {"prompt": "src", "completion": "tgt", "references": "refs", **_PAIR},
    "prompt": {"prompt": "prompt", "completion": "completion", "references": "references", **_PAIR},
    "messages": {"messages": "messages", **_PAIR},
    "sharegpt": {"messages": "conversations", **_PAIR},
    "oasst": {"messages": "text"},
    "dolly": {"prompt": "instruction", "context": "context", "completion": "response"},
    "alpaca": {"prompt": "instruction", "context": "input", "completion": "output", **_PAIR},
    "nemotron": {"messages": "input", "completion": "output", **_PAIR},
    "question": {"prompt": "question", "context": "context", "completion": "answer", **_PAIR},
    "mbpp": {"prompt": "text", "completion": "code"},
    "pairs": _PAIR,
}
_TELLING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("coedit", ("src",)),
    ("prompt", ("prompt",)),
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("oasst", PRESETS["oasst1"].columns),
    ("dolly", ("instruction", "response")),
    ("alpaca", ("instruction",)),
    ("nemotron", ("input", "output")),
    ("nemotron", ("input", "chosen", "rejected")),
    ("question", ("question",)),
    ("mbpp", ("text", "code")),
    ("pairs", ("chosen", "rejected")),
)
_OTHER_NAMES = ("response", "answer", "output")  # for a completion, if its own column is missing
_VERDICTS = ("true", "false", "0", "1", "0.0", "1.0")  # of KTO, as JSON, CSV and tables have them
_ANSWERS = {"completion", "chosen", *_OTHER_NAMES}


def format_of(recipe: AlignDataRecipe, columns: Sequence[str], file: Path) -> str:
    """The format of a file, from the recipe or its columns.

    Raises:
        DataError: an unknown format.
    """
    if recipe.format is not None:
        return recipe.format
    if recipe.columns:
        return "messages" if "messages" in recipe.columns else "prompt"
    kinds = [kind for kind, telling in _TELLING if {*telling} <= {*columns}]
    if kinds[:1] == ["prompt"] and kinds[1:] and not _ANSWERS & {*columns}:
        kinds = kinds[1:]  # the prompt is a copy of the chat's first message (HuggingFaceH4/ultrachat_200k)
    found = next(iter(kinds), None)
    if found is None:
        raise DataError(
            f"its columns ({', '.join(columns) or 'none'}) match no known format.",
            field="data.format",
            value=str(file),
            fix="Map them, e.g. `data.columns={'prompt': 'question', 'context': 'passage', 'completion': "
            "'answer'}`; other columns are ignored.",
        )
    return found


def columns_of(recipe: AlignDataRecipe, kind: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Role -> column for this row."""
    system = "system" if "system" in row else "system_prompt"
    named = {"system": system, "tools": "tools", **COLUMNS[kind], **recipe.columns}
    if "completion" in named and "completion" not in recipe.columns and named["completion"] not in row:
        named["completion"] = next((name for name in _OTHER_NAMES if name in row), named["completion"])
    return named


def required_columns(kind: str, row: Mapping[str, Any], named: Mapping[str, str], *, pairs: bool) -> list[str]:
    """The columns that a row must have."""
    first = next(iter(COLUMNS[kind]))
    if pairs:
        return [named.get(role, role) for role in dict.fromkeys((first, "chosen", "rejected"))]
    if "completion" not in COLUMNS[kind] or (named.get("chosen") in row and named["completion"] not in row):
        return [named[first]]
    return [named[first], named["completion"]]


def check_label(row: Mapping[str, Any], where: str, file: Path) -> None:
    """Refuse answers with a label for good or bad (KTO): half of them are to be unlearned.

    In pairs, which already have a better and a worse answer, the numbers 0 and 1 may mean anything.

    Raises:
        DataError: the row has such a label.
    """
    verdicts = ("true", "false") if "rejected" in row else _VERDICTS
    column = next((name for name in ("label", "kto_tag") if str(row.get(name)).lower() in verdicts), None)
    if column is not None:
        bad, good = ("0", "1") if str(row[column])[0].isdigit() else ("false", "true")
        raise DataError(
            f"{where}: answers with a `{column}` of {good} or {bad} (as of KTO) are not supported.",
            field="data.format",
            value=str(file),
            fix=f"Keep the rows whose {column} is {good} and leave the column out, or make pairs of a better and a "
            "worse answer to the same prompt. If it means something else, set data.format.",
        )
