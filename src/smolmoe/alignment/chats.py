"""Chats of all usual schemas as messages, and messages as text through a chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from smolmoe.data.tally import Tally, whole_text
from smolmoe.errors import DataError, RequestError

Message = dict[str, Any]
Turns = tuple[tuple[str, bool], ...]

_ROLES = {
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
    role = _ROLES.get(role, role)
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


def starts_with(messages: Sequence[Message], beginning: Sequence[Message]) -> bool:
    return len(messages) >= len(beginning) and all(map(_same, messages, beginning))


def shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """The number of messages at the beginning that both share."""
    return next(
        (at for at, both in enumerate(zip(one, other, strict=False)) if not _same(*both)), min(map(len, (one, other)))
    )


def _same(one: Message, other: Message) -> bool:
    kinds = ({k: v for k, v in message.items() if k not in ("content", "weight")} for message in (one, other))
    return one["content"].strip() == other["content"].strip() and next(kinds) == next(kinds)


class Renderer:
    """A chat template, and the keys of the messages that it uses.

    Args:
        template: the recipe's file, or None for the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, template: Path | None):
        self.tokenizer, self.name = tokenizer, str(template or "the tokenizer's")
        self.template = None if template is None else _read(template)
        self.shown: set[str] = set()

    def pieces(self, before: Sequence[Message], answer: Sequence[Message], tools: Any, where: str) -> tuple[str, Turns]:
        """The prompt, and the following turns, each with whether it is learned.

        Non-empty turns of the assistant are learned, unless their `weight` is 0.
        """
        prompt = done = self._rendered(before, tools, where, True)
        messages, parts = [*before], list[tuple[str, bool]]()
        for message in answer:
            if message["role"] != "assistant":
                messages.append(message)
                continue
            start = self._rendered(messages, tools, where, True)
            end = self._rendered([*messages, message], tools, where, False)
            if not start.startswith(done) or not end.startswith(start):
                raise RequestError(
                    "it renders a prompt differently when an answer follows.",
                    field="data.chat_template",
                    value=self.name,
                    fix="Use a template in which the text before an answer does not depend on the answer.",
                )
            if start != done:
                parts.append((start[len(done) :], False))
            empty = {"role": "assistant", "content": ""}
            holds = message["content"].strip() or end != self._rendered([*messages, empty], tools, where, False)
            parts.append((end[len(start) :], bool(holds) and message.get("weight") != 0))
            messages.append(message)
            done = end
        self._look_for_keys(messages, tools, where)
        bos = self.tokenizer.bos_token
        # The tokenizer adds its own.
        is_twice = bos and self.tokenizer("").input_ids[:1]
        return prompt.removeprefix(bos) if is_twice else prompt, tuple(parts)

    def _look_for_keys(self, messages: Sequence[Message], tools: Any, where: str) -> None:
        """Record which keys other than role and content the template uses: without them its output changes."""
        keys = further_keys(messages) - self.shown
        if not keys and not tools:
            return
        text = self._rendered(messages, tools, where, False)
        for key in keys:
            bare = [{name: value for name, value in message.items() if name != key} for message in messages]
            if self._rendered(bare, tools, where, False) != text:
                self.shown.add(key)
        if tools and self._rendered(messages, None, where, False) != text:
            self.shown.add("tools")

    def _rendered(self, messages: Sequence[Message], tools: Any, where: str, is_prompt: bool) -> str:
        if self.template is None and not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                f"{where} is a chat, but the tokenizer has no chat template.",
                field="data.chat_template",
                value=None,
                fix="Use a file with a Jinja template, or prompts and completions as plain text.",
            )
        plain = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain,
                    tools=tools or None,
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                    chat_template=self.template,
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise RequestError(
                f"cannot render {where}: {error}", field="data.chat_template", value=self.name
            ) from error


def further_keys(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    return {key for message in messages for key in message} - {"role", "content", "weight"}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read: {error}.", field="data.chat_template", value=str(path)) from error


def bad(where: str, problem: str) -> DataError:
    return DataError(f"{problem}.", field="data", value=where)
