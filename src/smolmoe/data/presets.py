"""Known data sets: where they are, which columns they have, and how their rows become documents."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.data.text import Document, check_columns
from smolmoe.errors import DataError

Row = Mapping[str, Any]
EMBEDDED = "embedded"

_ROLES = {"user": "User", "prompter": "User", "human": "User", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True)
class Preset:
    """A data set on the hub.

    Attributes:
        path, name, split: what `datasets.load_dataset` takes.
        columns: that every row must have.
        licence: as the data set's card on the hub gives it (SPDX), or `mixed`: each row is under its own.
        size: rows of the split, about.
        optional: columns that are read where they are there.
        documents: turns the rows, in their order, into documents.
        joins_rows: several rows make one document.
    """

    path: str
    columns: tuple[str, ...]
    documents: Callable[[Iterable[Row]], Iterator[Document]]
    licence: str
    size: int
    name: str | None = None
    split: str = "train"
    optional: tuple[str, ...] = ()
    joins_rows: bool = False

    @property
    def free(self) -> bool:
        """Whether the licence allows every use, under conditions such as naming the source, of every row."""
        return self.licence in FREE


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        DataError: there is none, with the nearest name.
    """
    if name not in PRESETS:
        known = [*PRESETS, EMBEDDED]
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
        raise DataError("there is no such preset.", field="preset", value=name, fix=fix)
    return PRESETS[name]


def documents_of(name: str, rows: Iterable[Row]) -> Iterator[Document]:
    """The documents that the rows of a preset's data set hold; rows without text give none.

    Raises:
        DataError: no such preset; a row lacks one of its columns, or holds something else than text in it.
    """
    preset = find_preset(name)
    return preset.documents(_checked(name, preset, rows))


def _checked(name: str, preset: Preset, rows: Iterable[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        check_columns(tuple(row), preset.columns, "columns", name, where=f"row {number}: ")
        yield row


def _string(row: Row, column: str) -> str:
    """A cell of text, stripped; empty where there is none."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'"{column}" is a {type(value).__name__}, not a string.', field="data", value=value)
    return value.strip()


def _column(column: str, domain: str) -> Callable[[Iterable[Row]], Iterator[Document]]:
    """Each row is a document, in one column."""

    def documents(rows: Iterable[Row]) -> Iterator[Document]:
        return (Document(text, domain) for row in rows if (text := _string(row, column)))

    return documents


def dialogue(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as plain text, the speaker before each turn."""
    return "\n".join(f"{_ROLES.get(role, role.capitalize())}: {text}" for role, text in turns if text)


def _dolly(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        question = "\n".join(filter(None, (_string(row, "instruction"), _string(row, "context"))))
        answer = _string(row, "response")
        if question and answer:
            yield Document(dialogue([("user", question), ("assistant", answer)]), "chat")


def _coedit(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        source, target = _string(row, "src"), _string(row, "tgt")
        if source and target:
            yield Document(f"{source}\n{target}", "correction")


def _nemotron(rows: Iterable[Row]) -> Iterator[Document]:
    for row in rows:
        turns = [("system", _string(row, "system_prompt")), *_messages(row["input"])]
        answer = _string(row, "output")
        if answer and any(text for role, text in turns if role != "system"):
            yield Document(dialogue([*turns, ("assistant", answer)]), _string(row, "category") or "chat")


def _messages(value: Any) -> list[tuple[str, str]]:
    """(role, text) of a list of messages, or of a string, which the user said."""
    if isinstance(value, str):
        return [("user", value.strip())]
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise DataError('"input" is neither a string nor a list of messages.', field="data", value=value)
    return [(_string(message, "role") or "user", _string(message, "content")) for message in value]


def _wikitext(rows: Iterable[Row]) -> Iterator[Document]:
    """Rows are lines; an article begins at its title, ` = Title = ` after an empty line."""
    article: list[str] = []
    after_blank = True
    for row in rows:
        line = _string(row, "text")
        if article and after_blank and _is_title(line):
            yield Document("\n".join(article), "wiki")
            article = []
        if line:
            article.append(line)
        after_blank = not line
    if article:
        yield Document("\n".join(article), "wiki")


def _is_title(line: str) -> bool:
    """` = Title = `, not ` = = Section = = `."""
    return len(line) > 4 and line.startswith("= ") and line.endswith(" =") and not line.startswith("= = ")


@dataclass(frozen=True)
class _Message:
    id: str
    role: str
    text: str
    rank: float


def _oasst(rows: Iterable[Row]) -> Iterator[Document]:
    """One conversation of each tree: from the prompt, the best-ranked reply each time.

    Only one, since the conversations of a tree begin alike: were they several documents, some could be held out
    and their beginnings trained on. All messages are held in memory, as a tree's need not stand together.
    """
    roots: list[_Message] = []
    replies: dict[str, list[_Message]] = {}
    for row in rows:
        text = _string(row, "text")
        if row.get("deleted") or not text:
            continue
        rank = row.get("rank")
        message = _Message(str(row["message_id"]), _string(row, "role"), text, float("inf") if rank is None else rank)
        if row["parent_id"] is None:
            roots.append(message)
        else:
            replies.setdefault(str(row["parent_id"]), []).append(message)
    for root in roots:
        thread = _best_thread(root, replies)
        if len(thread) > 1:
            yield Document(dialogue([(message.role, message.text) for message in thread]), "chat")


def _best_thread(root: _Message, replies: Mapping[str, Sequence[_Message]]) -> list[_Message]:
    """From the root along the replies of lowest rank, up to the assistant's last one."""
    thread = [root]
    while following := replies.get(thread[-1].id):
        thread.append(min(following, key=lambda message: message.rank))
    while len(thread) > 1 and thread[-1].role != "assistant":
        thread.pop()
    return thread


FREE = ("apache-2.0", "cc-by-4.0", "cc-by-sa-3.0", "cdla-sharing-1.0")
PRESETS: dict[str, Preset] = {
    "codeparrot": Preset(
        "codeparrot/codeparrot-clean-valid", ("content",), _column("content", "code"), licence="mixed", size=61_373
    ),
    "coedit": Preset("grammarly/coedit", ("src", "tgt"), _coedit, licence="apache-2.0", size=69_071),
    "cosmopedia-100k": Preset(
        "HuggingFaceTB/cosmopedia-100k", ("text",), _column("text", "web"), licence="apache-2.0", size=100_000
    ),
    "dolly": Preset(
        "databricks/databricks-dolly-15k",
        ("instruction", "context", "response"),
        _dolly,
        licence="cc-by-sa-3.0",
        size=15_011,
    ),
    "llama-nemotron": Preset(
        "nvidia/Llama-Nemotron-Post-Training-Dataset",
        ("input", "output"),
        _nemotron,
        licence="cc-by-4.0",
        size=39_792,
        name="SFT",
        split="chat",  # its splits are code, math, science, chat and safety, the first two of millions of rows
        optional=("category", "system_prompt"),
    ),
    "oasst1": Preset(
        "OpenAssistant/oasst1",
        ("message_id", "parent_id", "text", "role"),
        _oasst,
        licence="apache-2.0",
        size=84_437,
        optional=("rank", "deleted"),
        joins_rows=True,
    ),
    "tinystories": Preset(
        "roneneldan/TinyStories", ("text",), _column("text", "stories"), licence="cdla-sharing-1.0", size=2_119_719
    ),
    "wikitext": Preset(
        "Salesforce/wikitext",
        ("text",),
        _wikitext,
        licence="cc-by-sa-3.0",
        size=1_801_350,
        name="wikitext-103-raw-v1",
        joins_rows=True,
    ),
}
