"""Examples as tokens, the same for training, for measuring and for what a trainer of TRL takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from smolmoe.align.examples import Example
from smolmoe.errors import DataError, RequestError


@dataclass(frozen=True)
class Row:
    """One example in tokens.

    Attributes:
        prompt: ids, at least one.
        chosen, rejected: ids of the answers, each with the end-of-text token at its end; `rejected` is empty in
            supervised data.
        example: what was tokenised.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    example: Example

    @property
    def tokens(self) -> int:
        """Of all sequences that are made of it."""
        sequences = 2 if self.rejected else 1
        return sequences * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class Dropped:
    """Examples that were left out, by reason.

    Attributes:
        equal: pairs whose answers are the same.
        too_long: examples that exceed the length; a prompt that were cut would be another prompt.
        empty: examples without a prompt or without an answer.
    """

    equal: int = 0
    too_long: int = 0
    empty: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def tokenised(
    examples: Sequence[Example], tokenizer: Any, length: int, *, field: str = "data.train"
) -> tuple[list[Row], Dropped]:
    """The examples in tokens, without those of which nothing can be learned.

    Args:
        length: tokens of a prompt and an answer at most.
        field: what the error names.

    Raises:
        DataError: none is left.
        RequestError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise RequestError(
            "it has no end-of-text token, so no answer could end.", field="tokenizer", value=type(tokenizer).__name__
        )
    rows: list[Row] = []
    dropped = Dropped()
    for example in examples:
        row = _row(example, tokenizer)
        longest = len(row.prompt) + max(len(row.chosen), len(row.rejected))
        is_empty = not row.prompt or not example.chosen.strip()
        if is_empty:
            dropped = replace(dropped, empty=dropped.empty + 1)
        elif row.chosen == row.rejected:
            dropped = replace(dropped, equal=dropped.equal + 1)
        elif longest > length:
            dropped = replace(dropped, too_long=dropped.too_long + 1)
        else:
            rows.append(row)
    if not rows:
        raise _none_left(dropped, length, field)
    return rows, dropped


def fingerprint(rows: Iterable[Row]) -> str:
    """A hash of what is trained on, in its order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt, row.chosen, row.rejected]).encode())
    return digest.hexdigest()


def _row(example: Example, tokenizer: Any) -> Row:
    prompt = _without_end(list(tokenizer(example.prompt)["input_ids"]), tokenizer.eos_token_id)
    chosen = _answer(prompt, example.prompt, example.chosen, tokenizer)
    rejected = [] if example.rejected is None else _answer(prompt, example.prompt, example.rejected, tokenizer)
    return Row(tuple(prompt), tuple(chosen), tuple(rejected), example)


def _answer(ids: list[int], prompt: str, answer: str, tokenizer: Any) -> list[int]:
    """What follows the prompt's own tokens, which are those that the model is given when it answers."""
    end = tokenizer.eos_token_id
    whole = _without_end(list(tokenizer(prompt + answer)["input_ids"]), end)
    if whole[: len(ids)] == ids:
        found = whole[len(ids) :]
    else:  # a token reaches over the boundary
        found = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    return [*_without_end(found, end), end]


def _without_end(ids: list[int], end: int) -> list[int]:
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    return [] if ids == [end] else ids


def _none_left(dropped: Dropped, length: int, field: str) -> DataError:
    reasons = {
        "are pairs of equal answers": dropped.equal,
        f"are longer than {length} tokens": dropped.too_long,
        "have no prompt or no answer": dropped.empty,
    }
    said = ", ".join(f"{count} {what}" for what, count in reasons.items() if count)
    if dropped.too_long >= max(dropped.equal, dropped.empty):
        fix = "Set a larger data.length, up to the model's positions, or give shorter rows."
    else:
        fix = "Give rows with two different answers." if dropped.equal else "Give rows with prompts and answers."
    return DataError(f"no row is left to use: {said}.", field=field, value=sum(reasons.values()), fix=fix)
