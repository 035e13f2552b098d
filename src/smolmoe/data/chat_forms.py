"""Chat logs as people have them: lists of messages, ShareGPT conversations, prompts with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from smolmoe.data.forms import Conversation, Conversations, Form, Row, dialogues, string
from smolmoe.data.messages import NotTextError, Unused, messages_of, parsed_chat
from smolmoe.data.text import is_empty

CHAT = "chat"  # the domain of a conversation that states none

Turns = tuple[tuple[str, str], ...]


def _turns(value: Any, role: str = "user") -> Turns:
    """(role, text) of messages of any schema, or of a text as a turn of this role."""
    found = parsed_chat(value)
    if is_empty(found):
        return ()
    if isinstance(found, str):
        return ((role, found.strip()),)
    return tuple((one["role"], one["content"].strip()) for one in messages_of(found, "", Unused()))


def _up_to_the_answer(turns: Turns) -> Turns:
    """The turns up to the assistant's last one: what follows has no answer."""
    last = max((at for at, (role, _) in enumerate(turns) if role == "assistant"), default=-1)
    return tuple((role, text) for role, text in turns[: last + 1] if text)


def _conversations(turns_of: Callable[[Row], Turns]) -> Conversations:
    def conversations(rows: Iterable[Row]) -> Iterator[Conversation]:
        for row in rows:
            try:
                turns = turns_of(row)
            except NotTextError:  # an image: a row without text
                turns = ()
            system = string(row, "system") or string(row, "system_prompt")
            if system and turns and turns[0][0] != "system":
                turns = (("system", system), *turns)
            yield Conversation(_up_to_the_answer(turns), CHAT)

    return conversations


def _form(columns: tuple[str, ...], turns_of: Callable[[Row], Turns]) -> Form:
    found = _conversations(turns_of)
    return Form(columns=columns, documents=dialogues(found), optional=("system", "system_prompt"), conversations=found)


def _pair(question: str, answer: str) -> Form:
    return _form((question, answer), lambda row: (*_turns(row[question]), *_turns(row[answer], "assistant")))


CHATS: dict[str, Form] = {
    "messages": _form(("messages",), lambda row: _turns(row["messages"])),
    "sharegpt": _form(("conversations",), lambda row: _turns(row["conversations"])),
    "prompt-completion": _pair("prompt", "completion"),
    "prompt-response": _pair("prompt", "response"),
    "question-response": _pair("question", "response"),
}
