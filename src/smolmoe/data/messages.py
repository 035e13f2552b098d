"""Chats of all usual schemas as messages, and messages as text through a chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smolmoe.data.tally import Tally, whole_text
from smolmoe.errors import DataError, RequestError

Message = dict[str, Any]
ROLES = {  # of all schemas, as chat templates name them
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
_OWN = ("role", "from", "content", "value")


class NotTextError(Exception):
    """A message contains something other than text, such as an image."""


@dataclass
class Unused:
    """Content of the rows that no example uses.

    Attributes:
        counts: content -> how often.
    """

    counts: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def add(self, what: str, count: int = 1) -> None:
        self.counts[what] += count

    def to_json(self) -> dict[str, int]:
        return {**self.counts, **{f"texts with {reason}": count for reason, count in self.tally.counts.items()}}


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def is_chat(value: Any) -> bool:
    return isinstance(value, list | dict)


def parsed(value: Any) -> Any:
    """The content of a string of JSON, as messages and tools often are; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    items = found if isinstance(found, list) else [found]
    return found if items and all(isinstance(item, dict) for item in items) else value


def parsed_chat(value: Any) -> Any:
    """As `parsed`, for messages only: an answer may be JSON itself."""
    found = parsed(value)
    items = found if isinstance(found, list) else [found]
    named = all(
        isinstance(item, dict) and ({"role", "content"} <= {*item} or {"from", "value"} <= {*item}) for item in items
    )
    return found if named else value


def messages_of(value: Any, where: str, unused: Unused) -> list[Message]:
    """Messages of any schema with their other keys; one message or a plain answer becomes a list of one.

    Raises:
        DataError: the value contains no messages.
        NotTextError: a part of a message is not text.
    """
    if isinstance(value, str):
        return [{"role": "assistant", "content": whole_text(value, unused.tally, where)}]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise bad(where, f"a {type(value).__name__} instead of messages")
    return [_message(item, where, unused) for item in items if item is not None]


def _message(item: Any, where: str, unused: Unused) -> Message:
    if not isinstance(item, dict):
        raise bad(where, f"a {type(item).__name__} instead of a message with role and content")
    role = item.get("role") or item.get("from")
    if not role and ("role" in item or "from" in item):
        role = "null"
    further = {k: v for k, v in item.items() if k not in _OWN and v is not None}
    there = "content" in item or "value" in item or "tool_calls" in further
    if not isinstance(role, str) or not there:
        keys = ", ".join(map(str, item)) or "none"
        raise bad(where, f"a message without role and content (or from and value); its keys: {keys}")
    role = ROLES.get(role, role)
    content = item.get("content")
    text = _text(item.get("value") if content is None else content, where, unused)
    if "tool_calls" in further:
        further["tool_calls"] = _calls(further["tool_calls"])
    if role not in KNOWN_ROLES:
        unused.add(f'loss on turns of the unknown role "{role}"')
    return {"role": role, "content": whole_text(text, unused.tally, where), **further}


def _text(content: Any, where: str, unused: Unused) -> str:
    """Text, parts of text, or nothing (mostly with tool calls)."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad(where, f"a message whose content is a {type(content).__name__}, not a string")
    found = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            unused.add(f'content parts of the type "{kind}"')
            raise NotTextError
        found.append(text)
    return "".join(found)


def _calls(calls: Any) -> Any:
    """Tool calls with their arguments as objects, as chat templates take them."""
    calls = parsed(calls)
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            call = {**call, "function": {**function, "arguments": parsed(function.get("arguments"))}}
        found.append(call)
    return found


def bad(where: str, problem: str) -> DataError:
    return DataError(f"{problem}.", field="data", value=where)


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    where: str,
    *,
    tools: Any = None,
    template: str | None = None,
    is_prompt: bool = False,
    named: str = "the tokenizer's",
) -> str:
    """Messages as text through a chat template.

    Args:
        where: the row, for errors.
        template: Jinja, or None for the tokenizer's own.
        is_prompt: the text ends where the assistant's turn begins.
        named: the template in errors.

    Raises:
        RequestError: there is no template, or it does not render these messages.
    """
    from jinja2 import TemplateError

    if template is None and not has_template(tokenizer):
        raise RequestError(
            f"{where} is a chat, but the tokenizer has no chat template.",
            field="data.chat_template",
            value=None,
            fix="Use a file with a Jinja template, or prompts and completions as plain text.",
        )
    plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    try:
        return str(
            tokenizer.apply_chat_template(
                plain, tools=tools or None, tokenize=False, add_generation_prompt=is_prompt, chat_template=template
            )
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise RequestError(f"cannot render {where}: {error}", field="data.chat_template", value=named) from error
