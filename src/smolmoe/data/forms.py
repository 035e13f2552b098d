"""Forms of rows: the columns that identify one, and the conversion of its rows to documents and conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smolmoe.data.messages import ROLES, render
from smolmoe.data.text import Document, is_empty
from smolmoe.errors import DataError

Row = Mapping[str, Any]


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


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of rows.

    Attributes:
        columns: required in every row.
        documents: converts the rows, in their order, to documents; None for a row without text.
        optional: columns that are read if they exist.
        conversations: converts the rows to questions and answers, if they are such.
        joins_rows: several rows make one document.
        telling: columns that identify rows on disk as of this form (default: `columns`); empty if a file would be
            read by its `text` column anyway.
    """

    columns: tuple[str, ...]
    documents: Documents
    optional: tuple[str, ...] = ()
    conversations: Conversations | None = None
    joins_rows: bool = False
    telling: tuple[str, ...] | None = None


def read(
    form: Form, rows: Iterable[Row], *, tokenizer: Any = None, domain_column: str | None = None
) -> Iterator[Document | None]:
    """The documents of rows of a form; None for a row without text.

    Args:
        tokenizer: whose chat template renders conversations; without one they are plain text.
        domain_column: a row's domain in it replaces the form's, if each row is a document.
    """
    last: Row = {}

    def seen() -> Iterator[Row]:
        nonlocal last
        for row in rows:
            last = row
            yield row

    templated = tokenizer is not None and form.conversations is not None
    for document in _rendered(form, seen(), tokenizer) if templated else form.documents(seen()):
        own = None if domain_column is None or form.joins_rows else last.get(domain_column)
        yield document if document is None or is_empty(own) else replace(document, domain=str(own))


def _rendered(form: Form, rows: Iterable[Row], tokenizer: Any) -> Iterator[Document | None]:
    assert form.conversations is not None
    for number, one in enumerate(form.conversations(rows), 1):
        messages = [{"role": ROLES.get(role, role), "content": text} for role, text in one.turns if text]
        yield Document(render(tokenizer, messages, f"row {number}"), one.domain) if one.is_whole else None


def string(row: Row, column: str) -> str:
    """A cell of text, stripped; empty if missing."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'"{column}" is a {type(value).__name__}, not a string.', field="data", value=value)
    return value.strip()


def column(column: str, domain: str) -> Documents:
    """Each row is a document, in one column."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        return (Document(text, domain) if (text := string(row, column)) else None for row in rows)

    return documents


def dialogues(conversations: Conversations) -> Documents:
    """Each conversation is a document, with the speaker before each turn."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        for one in conversations(rows):
            yield Document(dialogue(one.turns), one.domain) if one.is_whole else None

    return documents


def plainly(conversations: Conversations) -> Documents:
    """Each conversation is a document, one turn per line."""

    def documents(rows: Iterable[Row]) -> Iterator[Document | None]:
        for one in conversations(rows):
            yield Document("\n".join(text for _, text in one.turns), one.domain) if one.is_whole else None

    return documents


def answered(question: Sequence[str], answer: str, domain: str) -> Conversations:
    """Each row is a question, the lines of several columns, and its answer."""

    def conversations(rows: Iterable[Row]) -> Iterator[Conversation]:
        for row in rows:
            asked = "\n".join(filter(None, (string(row, column) for column in question)))
            system = [("system", text)] if (text := string(row, "system")) else []
            yield Conversation((*system, ("user", asked), ("assistant", string(row, answer))), domain)

    return conversations


def dialogue(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as plain text, with the speaker before each turn."""
    return "\n".join(f"{ROLES.get(role, role).capitalize()}: {text}" for role, text in turns if text)
