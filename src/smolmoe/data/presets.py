"""Known data sets: their places, their columns, and the conversion of their rows to documents."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.data.formats import check_columns
from smolmoe.data.tally import NO_TEXT, Tally, whole
from smolmoe.data.text import Document
from smolmoe.errors import DataError

Row = Mapping[str, Any]
EMBEDDED = "embedded"

_ROLES = {"user": "User", "prompter": "User", "human": "User", "assistant": "Assistant", "system": "System"}


@dataclass(frozen=True)
class Conversation:
    """The content of one document.

    Attributes:
        turns: (role, text), with the roles system, user (or prompter, human) and assistant; some may be empty.
        domain: of the document.
        unused: rows of the conversation that are not in it.
    """

    turns: tuple[tuple[str, str], ...]
    domain: str
    unused: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it has a question, and an answer at the end."""
        return bool(self.turns and self.turns[-1][0] == "assistant" and self.turns[-1][1]) and any(
            text for role, text in self.turns if role not in ("system", "assistant")
        )


Conversations = Callable[[Iterable[Row]], Iterator[Conversation]]
Documents = Callable[[Iterable[Row]], Iterator[Document | None]]
Shown = Callable[[Conversations], Documents]


@dataclass(frozen=True)
class Preset:
    """A data set on the hub.

    Attributes:
        path, name, split: arguments of `datasets.load_dataset`.
        columns: required in every row.
        licence: from the data set's card on the hub (SPDX), or `mixed` if each row has its own.
        size: approximate number of rows of the split.
        optional: columns that are read if they exist.
        documents: converts the rows, in their order, to documents; None for a row without text.
        conversations: converts the rows to questions and answers, if they are such.
        joins_rows: several rows make one document.
        telling: columns that identify rows on disk as this data set's (default: `columns`); empty if a file would be
            read by its `text` column anyway.
    """

    path: str
    columns: tuple[str, ...]
    documents: Documents
    licence: str
    size: int
    name: str | None = None
    split: str = "train"
    optional: tuple[str, ...] = ()
    joins_rows: bool = False
    conversations: Conversations | None = None
    telling: tuple[str, ...] | None = None

    @property
    def free(self) -> bool:
        """Whether the licence allows every use of every row, under conditions such as attribution."""
        return self.licence in FREE


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        DataError: no such preset; suggests the nearest name.
    """
    if name not in PRESETS:
        known = [*PRESETS, EMBEDDED]
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"Presets: {', '.join(known)}."
        raise DataError("no such preset.", field="preset", value=name, fix=fix)
    return PRESETS[name]


def preset_of(columns: Sequence[str], text: str = "text") -> str | None:
    """The preset whose rows have these columns, or None.

    Args:
        text: the column that is read without a preset. Rows with it belong to a preset only if the preset itself has
            this column, and if they have no domain, unlike rows of `data fetch` and `data select`.
    """
    for name, preset in PRESETS.items():
        telling = preset.columns if preset.telling is None else preset.telling
        is_taken = text in columns and (text not in telling or "domain" in columns)
        if telling and {*telling} <= {*columns} and not is_taken:
            return name
    return None


def documents_of(name: str, rows: Iterable[Row], tally: Tally | None = None) -> Iterator[Document]:
    """The documents of the rows of a preset's data set, without rows that have no text.

    Args:
        tally: counts the latter.

    Raises:
        DataError: no such preset; a row lacks one of its columns, or has something other than text in it.
    """
    preset, tally = find_preset(name), tally if tally is not None else Tally()
    for document in preset.documents(_checked(name, preset, rows)):
        if document is None:
            tally.add(NO_TEXT, name)
        else:
            yield whole(document, tally, name)


def _checked(name: str, preset: Preset, rows: Iterable[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        check_columns(tuple(row), preset.columns, "columns", name, where=f"row {number}: ")
        yield row


def _string(row: Row, column: str) -> str:
    """A cell of text, stripped; empty if missing."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'"{column}" is a {type(value).__name__}, not a string.', field="data", value=value)
    return value.strip()


def _column(column: str, domain: str) -> Documents:
    """Each row is a document, in one column."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        return (Document(text, domain) if (text := _string(row, column)) else None for row in rows)

    return documents


def _dialogues(conversations: Conversations) -> Documents:
    """Each conversation is a document, with the speaker before each turn."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        for one in conversations(rows):
            yield Document(dialogue(one.turns), one.domain) if one.is_whole else None

    return documents


def _plainly(conversations: Conversations) -> Documents:
    """Each conversation is a document, one turn per line."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        for one in conversations(rows):
            yield Document("\n".join(text for _, text in one.turns), one.domain) if one.is_whole else None

    return documents


def _answered(question: Sequence[str], answer: str, domain: str) -> Conversations:
    """Each row is a question, the lines of several columns, and its answer."""

    def conversations(rows: Iterable[Row]) -> Iterator[Conversation]:
        for row in rows:
            asked = "\n".join(filter(None, (_string(row, column) for column in question)))
            system = [("system", text)] if (text := _string(row, "system")) else []
            yield Conversation((*system, ("user", asked), ("assistant", _string(row, answer))), domain)

    return conversations


def dialogue(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as plain text, with the speaker before each turn."""
    return "\n".join(f"{_ROLES.get(role, role.capitalize())}: {text}" for role, text in turns if text)


def _nemotron(rows: Iterable[Row]) -> Iterator[Conversation]:
    for row in rows:
        turns = [("system", _string(row, "system_prompt")), *_messages(row["input"])]
        turns = [(role, text) for role, text in turns if text]
        domain = _string(row, "category") or "chat"
        yield Conversation((*turns, ("assistant", _string(row, "output"))), domain)


def _messages(value: Any) -> list[tuple[str, str]]:
    """(role, text) of a list of messages, or of a string as the user's message."""
    if value is None:
        return []
    if isinstance(value, str):
        return [("user", value.strip())]
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise DataError('"input" is neither a string nor a list of messages.', field="data", value=value)
    return [(_string(message, "role") or "user", _string(message, "content")) for message in value]


def _wikitext(rows: Iterable[Row]) -> Iterator[Document | None]:
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


def _oasst(rows: Iterable[Row]) -> Iterator[Conversation]:
    """One conversation of each tree: from the prompt, always the best-ranked reply.

    The conversations of a tree have the same beginning: as several documents, some could be held out while their
    beginnings are trained on. All messages are kept in memory, since those of a tree may be far apart.
    """
    roots: list[_Message] = []
    replies: dict[str, list[_Message]] = {}
    for row in rows:
        text = _string(row, "text")
        if row.get("deleted") or not text or row["message_id"] is None:
            yield Conversation((), "chat")  # an unused row
            continue
        rank = row.get("rank")
        message = _Message(str(row["message_id"]), _string(row, "role"), text, float("inf") if rank is None else rank)
        if row["parent_id"] is None:
            roots.append(message)
        else:
            replies.setdefault(str(row["parent_id"]), []).append(message)
    reached = 0
    for root in roots:
        thread = _best_thread(root, replies)
        turns = tuple((message.role, message.text) for message in thread)
        size = _size(root, replies)
        reached += size
        yield Conversation(turns, "chat", unused=size - len(thread))
    for _ in range(len(roots) + sum(map(len, replies.values())) - reached):
        yield Conversation((), "chat")  # a reply to a missing message


def _size(root: _Message, replies: Mapping[str, Sequence[_Message]]) -> int:
    """Messages of a tree."""
    count, open_ = 0, [root]
    while open_:
        count += 1
        open_ += replies.get(open_.pop().id, ())
    return count


def _best_thread(root: _Message, replies: Mapping[str, Sequence[_Message]]) -> list[_Message]:
    """From the root along the replies of lowest rank, up to the assistant's last one."""
    thread = [root]
    while following := replies.get(thread[-1].id):
        thread.append(min(following, key=lambda message: message.rank))
    while len(thread) > 1 and thread[-1].role != "assistant":
        thread.pop()
    return thread


def _asked(
    path: str, columns: tuple[str, ...], conversations: Conversations, shown: Shown = _dialogues, **about: Any
) -> Preset:
    """A data set of questions and answers.

    Args:
        shown: converts its conversations to documents: `_dialogues` or `_plainly`.
        about: the preset's other attributes.
    """
    return Preset(path, columns, shown(conversations), conversations=conversations, **about)


FREE = ("apache-2.0", "cc-by-4.0", "cc-by-sa-3.0", "cdla-sharing-1.0", "mit")
PRESETS: dict[str, Preset] = {
    "alpaca": _asked(
        "tatsu-lab/alpaca",
        ("instruction", "output"),
        _answered(("instruction", "input"), "output", "chat"),
        licence="cc-by-nc-4.0",
        size=52_002,
        optional=("input", "system"),
    ),
    "codeparrot": Preset(
        "codeparrot/codeparrot-clean-valid",
        ("content",),
        _column("content", "code"),
        licence="mixed",
        size=61_373,
        telling=(),
    ),
    "coedit": _asked(
        "grammarly/coedit",
        ("src", "tgt"),
        _answered(("src",), "tgt", "correction"),
        _plainly,
        licence="apache-2.0",
        size=69_071,
    ),
    "cosmopedia-100k": Preset(
        "HuggingFaceTB/cosmopedia-100k",
        ("text",),
        _column("text", "web"),
        licence="apache-2.0",
        size=100_000,
        telling=(),
    ),
    "dolly": _asked(
        "databricks/databricks-dolly-15k",
        ("instruction", "context", "response"),
        _answered(("instruction", "context"), "response", "chat"),
        licence="cc-by-sa-3.0",
        size=15_011,
    ),
    "gsm8k": _asked(
        "openai/gsm8k",
        ("question", "answer"),
        _answered(("question",), "answer", "math"),
        _plainly,
        licence="mit",
        size=7_473,
        name="main",
    ),
    "llama-nemotron": _asked(
        "nvidia/Llama-Nemotron-Post-Training-Dataset",
        ("input", "output"),
        _nemotron,
        licence="cc-by-4.0",
        size=39_792,
        name="SFT",
        split="chat",  # its splits are code, math, science, chat and safety, the first two of millions of rows
        optional=("category", "system_prompt"),
    ),
    "mbpp": _asked(
        "google-research-datasets/mbpp",
        ("text", "code"),
        _answered(("text",), "code", "code"),
        _plainly,
        licence="cc-by-4.0",
        size=374,
        name="full",
        telling=("text", "code", "test_list"),
    ),
    "oasst1": _asked(
        "OpenAssistant/oasst1",
        ("message_id", "parent_id", "text", "role"),
        _oasst,
        licence="apache-2.0",
        size=84_437,
        optional=("rank", "deleted"),
        joins_rows=True,
    ),
    "tinystories": Preset(
        "roneneldan/TinyStories",
        ("text",),
        _column("text", "stories"),
        licence="cdla-sharing-1.0",
        size=2_119_719,
        telling=(),
    ),
    "wikitext": Preset(
        "Salesforce/wikitext",
        ("text",),
        _wikitext,
        licence="cc-by-sa-3.0",
        size=1_801_350,
        name="wikitext-103-raw-v1",
        joins_rows=True,
        telling=(),
    ),
}
