"""Known data sets: their places, their columns, and the conversion of their rows to documents."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.data.chat_forms import CHATS
from smolmoe.data.formats import check_columns
from smolmoe.data.forms import (
    Conversation,
    Conversations,
    Form,
    Row,
    Shown,
    answered,
    column,
    dialogues,
    plainly,
    read,
    string,
)
from smolmoe.data.tally import NO_TEXT, Tally, whole
from smolmoe.data.text import Document
from smolmoe.errors import DataError

EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True)
class Preset(Form):
    """A data set on the hub.

    Attributes:
        path, name, split: arguments of `datasets.load_dataset`.
        licence: from the data set's card on the hub (SPDX), or `mixed` if each row has its own.
        size: approximate number of rows of the split.
    """

    path: str
    licence: str
    size: int
    name: str | None = None
    split: str = "train"

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


def find_form(name: str) -> Form:
    """The preset, or the form of chat logs, of that name.

    Raises:
        DataError: no such form; suggests the nearest name.
    """
    if name in CHATS:
        return CHATS[name]
    if name not in PRESETS and (near := difflib.get_close_matches(name, [*CHATS], n=1)):
        raise DataError("no such form of rows.", field="preset", value=name, fix=f"Did you mean {near[0]!r}?")
    return find_preset(name)


def form_of(columns: Sequence[str], text: str = "text") -> str | None:
    """The preset, or the form of chat logs, whose rows have these columns, or None.

    Args:
        text: the column that is read without a preset. Rows with it belong to a form only if the form itself has
            this column, and if they have no domain, unlike rows of `data fetch` and `data select`.
    """
    for name, preset in {**PRESETS, **CHATS}.items():
        telling = preset.columns if preset.telling is None else preset.telling
        is_taken = text in columns and (text not in telling or "domain" in columns)
        if telling and {*telling} <= {*columns} and not is_taken:
            return name
    return None


def documents_of(name: str, rows: Iterable[Row], tally: Tally | None = None, **options: Any) -> Iterator[Document]:
    """The documents of rows of a form, without rows that have no text.

    Args:
        name: of a preset, or of a form of chat logs.
        tally: counts the latter.
        options: of `forms.read`.

    Raises:
        DataError: no such preset; a row lacks one of its columns, or has something other than text in it.
    """
    form, tally = find_form(name), tally if tally is not None else Tally()
    for document in read(form, _checked(name, form, rows), **options):
        if document is None:
            tally.add(NO_TEXT, name)
        else:
            yield whole(document, tally, name)


def _checked(name: str, form: Form, rows: Iterable[Row]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        check_columns(tuple(row), form.columns, "columns", name, where=f"row {number}: ")
        yield row


def _nemotron(rows: Iterable[Row]) -> Iterator[Conversation]:
    for row in rows:
        turns = [("system", string(row, "system_prompt")), *_messages(row["input"])]
        turns = [(role, text) for role, text in turns if text]
        domain = string(row, "category") or "chat"
        yield Conversation((*turns, ("assistant", string(row, "output"))), domain)


def _messages(value: Any) -> list[tuple[str, str]]:
    """(role, text) of a list of messages, or of a string as the user's message."""
    if value is None:
        return []
    if isinstance(value, str):
        return [("user", value.strip())]
    if not isinstance(value, Sequence) or not all(isinstance(message, Mapping) for message in value):
        raise DataError('"input" is neither a string nor a list of messages.', field="data", value=value)
    return [(string(message, "role") or "user", string(message, "content")) for message in value]


def _wikitext(rows: Iterable[Row]) -> Iterator[Document | None]:
    """Rows are lines; an article begins at its title, ` = Title = ` after an empty line."""
    article: list[str] = []
    after_blank = True
    for row in rows:
        line = string(row, "text")
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
        text = string(row, "text")
        if row.get("deleted") or not text or row["message_id"] is None:
            yield Conversation((), "chat")  # an unused row
            continue
        rank = row.get("rank")
        message = _Message(str(row["message_id"]), string(row, "role"), text, float("inf") if rank is None else rank)
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
    path: str, columns: tuple[str, ...], conversations: Conversations, shown: Shown = dialogues, **about: Any
) -> Preset:
    """A data set of questions and answers.

    Args:
        shown: converts its conversations to documents: `dialogues` or `plainly`.
        about: the preset's other attributes.
    """
    return Preset(path=path, columns=columns, documents=shown(conversations), conversations=conversations, **about)


FREE = ("apache-2.0", "cc-by-4.0", "cc-by-sa-3.0", "cdla-sharing-1.0", "mit")
PRESETS: dict[str, Preset] = {
    "alpaca": _asked(
        "tatsu-lab/alpaca",
        ("instruction", "output"),
        answered(("instruction", "input"), "output", "chat"),
        licence="cc-by-nc-4.0",
        size=52_002,
        optional=("input", "system"),
    ),
    "codeparrot": Preset(
        path="codeparrot/codeparrot-clean-valid",
        columns=("content",),
        documents=column("content", "code"),
        licence="mixed",
        size=61_373,
        telling=(),
    ),
    "coedit": _asked(
        "grammarly/coedit",
        ("src", "tgt"),
        answered(("src",), "tgt", "correction"),
        plainly,
        licence="apache-2.0",
        size=69_071,
    ),
    "cosmopedia-100k": Preset(
        path="HuggingFaceTB/cosmopedia-100k",
        columns=("text",),
        documents=column("text", "web"),
        licence="apache-2.0",
        size=100_000,
        telling=(),
    ),
    "dolly": _asked(
        "databricks/databricks-dolly-15k",
        ("instruction", "context", "response"),
        answered(("instruction", "context"), "response", "chat"),
        licence="cc-by-sa-3.0",
        size=15_011,
    ),
    "gsm8k": _asked(
        "openai/gsm8k",
        ("question", "answer"),
        answered(("question",), "answer", "math"),
        plainly,
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
        answered(("text",), "code", "code"),
        plainly,
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
        path="roneneldan/TinyStories",
        columns=("text",),
        documents=column("text", "stories"),
        licence="cdla-sharing-1.0",
        size=2_119_719,
        telling=(),
    ),
    "wikitext": Preset(
        path="Salesforce/wikitext",
        columns=("text",),
        documents=_wikitext,
        licence="cc-by-sa-3.0",
        size=1_801_350,
        name="wikitext-103-raw-v1",
        joins_rows=True,
        telling=(),
    ),
}
