"""A conversation with a model: its history, and what of it is sent."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from smolmoe.core.files import place, write_text
from smolmoe.core.json_text import json_line
from smolmoe.core.vocabulary import naming_rows
from smolmoe.data.prompts import Messages
from smolmoe.errors import OutputError, RequestError
from smolmoe.inference.chat_format import chat_ids
from smolmoe.inference.generate import Generation, generation
from smolmoe.inference.kept_cache import KeptCache
from smolmoe.inference.streaming import OnText, iterate
from smolmoe.inference.writer import Prepared, Writer, room_for
from smolmoe.recipe.base import parse
from smolmoe.recipe.generation import CHAT_TOKENS, GenerationRecipe
from smolmoe.recipe.words import SEEDS

logger = logging.getLogger(__name__)
_LEAST_SHARE = 4  # an answer has at least 1/4 of the context; else the oldest turns are left out


class Chat:
    """A conversation with a loaded model.

    Attributes:
        messages: the turns, of "user" and "assistant", without the system message.
        system: the system message; None is the template's own. Changes take effect with the next answer.
        experts: the only ones that are loaded; None if all are, or the model is dense.
        left_out: number of the oldest messages that the last prompt did not contain, for lack of context.
        last: the last answer; None before the first.
    """

    def __init__(self, writer: Writer, recipe: GenerationRecipe):
        self.messages: Messages = []
        self.system = recipe.system
        self.experts = writer.experts
        self.left_out = 0
        self.last: Generation | None = None
        self._writer, self._recipe = writer, recipe
        self._kept = KeptCache()
        self._interrupted = False
        self._answers = 0  # of all, so that each has its own seed

    def say(self, text: str, on_text: OnText | None = None) -> Generation:
        """Send a message, and return the answer; both become part of the history.

        If the answer fails, the history remains as it was. An answer that is interrupted is kept as far as it came; if
        nothing came, the message is forgotten.

        Args:
            on_text: is passed the answer piece by piece as it is written.

        Raises:
            RequestError: the message is empty, or does not fit into the context; the template refuses it.
            DataError: it has a token that the model does not have.
        """
        if not text.strip():
            raise RequestError("the message is empty.", field="prompt", value=text, fix="Give some text.")
        self._interrupted = False
        messages = [*self.messages, {"role": "user", "content": text}]
        with naming_rows(text, field="prompt", what="message"):
            ids, limit, left_out = self._fitted(messages)
        prepared = self._writer.prepared
        end = prepared.turn_end.text
        seed = (self._recipe.seed + self._answers) % SEEDS
        started = time.monotonic()
        answers = self._writer.write(
            [ids],
            limit=limit,
            stops=(*self._recipe.stops, *([end] if end else [])),
            seed=seed,
            on_text=on_text,
            interrupted=lambda: self._interrupted,
            kept=self._kept,
        )
        found = generation(self._writer, text, len(ids), answers, time.monotonic() - started, chat=True)
        self.last = replace(found, sampling=replace(found.sampling, seed=seed))
        self._answers += 1
        self.left_out = left_out
        if found.texts[0] or found.ends[0] != "interrupted":
            self.messages = [*messages, {"role": "assistant", "content": found.texts[0]}]
        return self.last

    def stream(self, text: str) -> Iterator[str]:
        """Send a message, and iterate over the pieces of the answer; `last` then has all of it.

        The answer is written in a thread. It is interrupted if the caller stops iterating.
        """
        return iterate(lambda on_text: self.say(text, on_text), self.interrupt)

    def interrupt(self) -> None:
        """End the answer that is being written after its next token; for a signal handler or another thread."""
        self._interrupted = True

    def undo(self) -> str:
        """Forget the last message and its answer; returns the message.

        Raises:
            RequestError: no message exists.
        """
        if not self.messages:
            raise RequestError("there is no message yet.", field="messages", value=0, fix="Send one first.")
        text = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return text

    def retry(self, on_text: OnText | None = None) -> Generation:
        """Answer the last message again, with another seed; the old answer is replaced.

        Raises:
            RequestError: there is no message yet.
        """
        before = self.messages
        text = self.undo()
        try:
            return self.say(text, on_text)
        finally:
            if len(self.messages) < len(before):
                self.messages = before

    def reset(self) -> None:
        """Forget all messages; the system message stays."""
        self.messages, self.left_out = [], 0

    def row(self) -> dict[str, Any]:
        """The conversation as a row of a chat data set."""
        system: Messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"messages": [*system, *self.messages]}

    def save(self, path: str | Path) -> Path:
        """Write the conversation as a .jsonl file with one row, which `sft` can train on.

        Raises:
            OutputError: the file exists, or cannot be written.
        """
        target = place(path, "file")
        if target.exists():
            raise OutputError("the file exists.", field="out", value=str(path), fix="Use a new name.")
        write_text(target, json_line(self.row()))
        return target

    def _fitted(self, messages: Messages) -> tuple[list[int], int, int]:
        """The tokens of the prompt, the most tokens of the answer, and how many of the oldest messages are left out."""
        prepared = self._writer.prepared
        system: Messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        context = prepared.context
        wanted = self._recipe.max_new_tokens or CHAT_TOKENS
        least = 0 if context is None else min(wanted, context // _LEAST_SHARE)
        for left_out in range(0, len(messages), 2):
            ids = chat_ids(prepared.tokenizer, [*system, *messages[left_out:]])
            if context is None or len(ids) + least <= context:
                break
        if left_out > self.left_out:
            logger.warning(
                "The context of %s tokens is full: the oldest %d messages are no longer sent.", context, left_out
            )
        limit = room_for(len(ids), self._recipe.model_copy(update={"max_new_tokens": None}), wanted, context)
        return ids, limit, left_out


def chat(model: str | Path, **options: Any) -> Chat:
    """Load a model for a conversation.

    Args:
        model: folder or hub id of a dense or MoE model.
        **options: the fields of `GenerationRecipe`. `max_new_tokens` is at most what the context leaves.

    Raises:
        RequestError: a value out of its range, an expert that does not exist, or no chat template.
        SourceError: no such model, or it has no tokenizer.
        CheckpointError: its files are missing or corrupt.
    """
    recipe = parse(GenerationRecipe, options)
    if recipe.experts == "auto":
        raise RequestError(
            "experts are chosen for a single prompt, and a chat has several.",
            field="experts",
            value=recipe.experts,
            fix="Name the experts; `smolmoe route` finds one for a prompt.",
        )
    prepared = Prepared(model, recipe)
    if not prepared.has_template:
        raise RequestError(
            "the model has no chat template: it continues texts, and knows no turns.",
            field="model",
            value=str(model),
            fix="Use `smolmoe generate`, or give a file with a `template` that the model was trained with.",
        )
    writer = prepared.load()
    logger.info("sampling: %s", prepared.sampling)
    return Chat(writer, recipe)
