"""A prompt and its answer as text through a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolmoe.data.messages import Message, render
from smolmoe.errors import RequestError

Turns = tuple[tuple[str, bool], ...]


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
        options: Any = {"template": self.template, "is_prompt": is_prompt, "named": self.name}
        return render(self.tokenizer, messages, where, tools=tools, **options)


def further_keys(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    return {key for message in messages for key in message} - {"role", "content", "weight"}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read: {error}.", field="data.chat_template", value=str(path)) from error
