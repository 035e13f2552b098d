"""Messages as a model's chat template writes them, and what ends a turn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from smolmoe.data.messages import has_template
from smolmoe.data.prompts import Messages, prompt_ids
from smolmoe.errors import DataError, RequestError

_QUESTION, _ANSWER, _NEXT = "Quokkas", "Wombats", "Numbats"  # words that no template has


def use_template(tokenizer: Any, file: Path) -> None:
    """Give a tokenizer the chat template of a file.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        tokenizer.chat_template = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read: {error}.", field="template", value=str(file)) from error


def user_message(text: str, system: str | None) -> Messages:
    """The messages of a first turn."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def chat_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The tokens of a chat, up to where the answer begins.

    Raises:
        RequestError: the template refuses the messages, or leaves the system message out.
        DataError: a token that the model does not have.
    """
    first = messages[0]
    system = first["content"] if first["role"] == "system" else None
    try:
        ids = prompt_ids(tokenizer, messages)
    except (TemplateError, ValueError, TypeError) as error:
        if system is not None:
            raise _no_system(system, str(error)) from error
        raise RequestError(f"the chat template cannot write the messages: {error}.", field="template") from error
    if system and ids == prompt_ids(tokenizer, messages[1:]):
        raise _no_system(system, "it leaves the message out")
    return ids


def _no_system(system: str, reason: str) -> RequestError:
    return RequestError(
        f"the chat template takes no system message ({reason.rstrip('.')}).",
        field="system",
        value=system,
        fix="Put it into the first message.",
    )


@dataclass(frozen=True)
class TurnEnd:
    """What a template writes after an answer: a token, or a text if that is no token of the tokenizer."""

    token: int | None = None
    text: str | None = None


def turn_end(tokenizer: Any) -> TurnEnd:
    """The end of an answer, read off the template: models write it, and it often is not the end of text.

    The last answer of a chat decides: in formats with several parts per answer the others end differently.
    """
    if not has_template(tokenizer):
        return TurnEnd()
    turns: Messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        last = _rendered(tokenizer, turns).rpartition(_ANSWER)[2]
        longer = _rendered(tokenizer, [*turns, {"role": "user", "content": _NEXT}])
    except (TemplateError, ValueError, TypeError):
        return TurnEnd()  # a template for other chats than these
    between = longer.rpartition(_ANSWER)[2].partition(_NEXT)[0]
    for text in (last, between):
        token = _first_token(tokenizer, text)
        if token is not None:
            return TurnEnd(token=token)
    return TurnEnd(text=between.rstrip() or None)


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _first_token(tokenizer: Any, text: str) -> int | None:
    """The added token that a text begins with; None if it begins with other text."""
    try:
        ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
    except DataError:  # the model does not have it, so does not write it
        return None
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
