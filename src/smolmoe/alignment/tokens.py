"""Examples as tokens, the same for training, for measuring and for TRL's trainers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from smolmoe.alignment.chats import Turns
from smolmoe.alignment.examples import Example
from smolmoe.errors import DataError, RequestError


@dataclass(frozen=True)
class Row:
    """One example in tokens.

    Attributes:
        prompt: ids, at least one.
        chosen, rejected: ids of the answers, each ending with the end-of-text token; `rejected` is empty in supervised
            data.
        example: the source of the tokens.
        chosen_loss, rejected_loss: for each token of the answers, whether it is learned; empty if all are.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    example: Example
    chosen_loss: tuple[bool, ...] = ()
    rejected_loss: tuple[bool, ...] = ()

    @property
    def tokens(self) -> int:
        """Of its one or two sequences."""
        sequences = 2 if self.rejected else 1
        return sequences * len(self.prompt) + len(self.chosen) + len(self.rejected)


# Why an example is skipped -> what the error says of such rows. A prompt is not truncated: it would be another prompt.
REASONS = {
    "equal": "are pairs of equal answers",
    "too_long": "are longer than {length} tokens",
    "empty": "have no prompt or no answer",
    "no_answer": "have no prompt or no answer",  # a chat without a turn of the assistant
    "no_prompt": "have no prompt or no answer",  # a chat that begins with the assistant
    "unknown_role": "have no known assistant role",
    "not_text": "contain something other than text",
    "weight_0": "have only answers of weight 0",
    "prompts_differ": "have answers to different prompts",
}


class Dropped(Counter[str]):
    """Numbers of skipped examples, by the `REASONS`."""

    def to_json(self) -> dict[str, int]:
        """The first three, and the others if there are any."""
        return {name: self[name] for name in REASONS if self[name] or name in ("equal", "too_long", "empty")}


def tokenised(
    examples: Sequence[Example], tokenizer: Any, length: int, *, field: str = "data.train"
) -> tuple[list[Row], Dropped]:
    """The examples in tokens, without those that nothing can be learned from.

    Args:
        length: maximum number of tokens of a prompt and an answer.
        field: named in the error.

    Raises:
        DataError: no example is left.
        RequestError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise RequestError(
            "has no end-of-text token, so no answer could end.", field="tokenizer", value=type(tokenizer).__name__
        )
    rows: list[Row] = []
    dropped = Dropped()
    for example in examples:
        if example.left_out is not None:
            dropped[example.left_out] += 1
            continue
        row = _row(example, tokenizer)
        longest = len(row.prompt) + max(len(row.chosen), len(row.rejected))
        is_empty = not row.prompt or not example.chosen.strip()
        if is_empty:
            dropped["empty"] += 1
        elif row.chosen == row.rejected:
            dropped["equal"] += 1
        elif longest > length:
            dropped["too_long"] += 1
        else:
            rows.append(row)
    if not rows:
        raise _none_left(dropped, length, field)
    return rows, dropped


def fingerprint(rows: Iterable[Row]) -> str:
    """A hash of the training data, in order."""
    digest = hashlib.sha256()
    for row in rows:
        loss = [row.chosen_loss, row.rejected_loss] if row.chosen_loss or row.rejected_loss else []
        digest.update(json.dumps([row.prompt, row.chosen, row.rejected, *loss]).encode())
    return digest.hexdigest()


def _row(example: Example, tokenizer: Any) -> Row:
    prompt = _without_end(list(tokenizer(example.prompt)["input_ids"]), tokenizer.eos_token_id)
    chosen, chosen_loss = _turns(prompt, example.prompt, example.chosen, example.chosen_turns, tokenizer)
    rejected: list[int] = []
    rejected_loss: list[bool] = []
    if example.rejected is not None:
        rejected, rejected_loss = _turns(prompt, example.prompt, example.rejected, example.rejected_turns, tokenizer)
    return Row(tuple(prompt), tuple(chosen), tuple(rejected), example, tuple(chosen_loss), tuple(rejected_loss))


def _turns(ids: list[int], prompt: str, answer: str, turns: Turns, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """An answer's tokens, and for each whether it is learned; no list of the latter if all are."""
    if not turns:
        return _answer(ids, prompt, answer, tokenizer), []
    found: list[int] = []
    loss: list[bool] = []
    for text, is_learned in turns:
        part = _following([*ids, *found], prompt, text, tokenizer)
        prompt += text
        found += part
        loss += [is_learned] * len(part)
    end = tokenizer.eos_token_id
    whole = _without_end(found, end)
    return [*whole, end], [*loss[: len(whole)], turns[-1][1]]


def _answer(ids: list[int], prompt: str, answer: str, tokenizer: Any) -> list[int]:
    """What follows the prompt's own tokens, which are those that the model is given when it answers."""
    end = tokenizer.eos_token_id
    return [*_without_end(_following(ids, prompt, answer, tokenizer), end), end]


def _following(ids: list[int], before: str, text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that follows another one, whose tokens are given."""
    whole = list(tokenizer(before + text)["input_ids"])
    if list(tokenizer("a")["input_ids"])[-1] == tokenizer.eos_token_id:  # put there by the tokenizer
        whole = whole[:-1]
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a token reaches over the boundary


def _without_end(ids: list[int], end: int) -> list[int]:
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    return [] if ids == [end] else ids


def _none_left(dropped: Dropped, length: int, field: str) -> DataError:
    counts: Counter[str] = Counter()
    for reason, said in REASONS.items():
        counts[said.format(length=length)] += dropped[reason]
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if dropped["too_long"] >= max(dropped["equal"], dropped["empty"]):
        fix = "Set a larger data.length, up to the model's context, or use shorter rows."
    else:
        fix = "Use rows with two different answers." if dropped["equal"] else "Use rows with prompts and answers."
    return DataError(f"no usable row: {said}.", field=field, value=dropped.total(), fix=fix)
