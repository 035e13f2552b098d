"""Scores of texts: the variety of their tokens, the loss of a model, and a random number."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from smolmoe.selection.duplicates import digest
from smolmoe.selection.entropy import Floats, Measured
from smolmoe.selection.filters import Candidate

Losses = Callable[[Sequence[Sequence[int]]], Sequence[float]]


class Scorer(Protocol):
    """Takes candidates in batches, and scores them at the end; it does not keep their texts."""

    tokens: array[int]

    def add(self, candidates: Sequence[Candidate], groups: Sequence[int]) -> None:
        """Take candidates, and the index of each one's group."""

    def scores(self) -> Floats:
        """The score of every candidate, in order: [N]."""


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of each text, without special tokens. Half a surrogate pair becomes a question mark."""
    if not texts:
        return []
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    encoded: list[list[int]] = tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]
    return encoded


class EntropyScorer:
    """`text_weight`·H(text) + `prompt_weight`·H(prompt), each H relative to texts of that length, or plain in bits.

    A row without a prompt is scored by its text only, with both weights.

    Args:
        tokenizer: whose tokens are counted.
        weights: of text and prompt.
        plain: in bits, not relative to the length.
    """

    def __init__(self, tokenizer: Any, weights: tuple[float, float], *, plain: bool):
        self._tokenizer = tokenizer
        self._weights = weights
        self._plain = plain
        self.texts, self.prompts = Measured(), Measured()
        self._prompted = array("b")
        self.tokens: array[int] = array("q")

    def add(self, candidates: Sequence[Candidate], groups: Sequence[int]) -> None:
        for ids, group in zip(token_ids(self._tokenizer, [c.text for c in candidates]), groups, strict=True):
            self.texts.add(ids, group)
            self.tokens.append(len(ids))
        asked = [(c.prompt, group) for c, group in zip(candidates, groups, strict=True) if c.prompt is not None]
        for ids, (_, group) in zip(token_ids(self._tokenizer, [prompt for prompt, _ in asked]), asked, strict=True):
            self.prompts.add(ids, group)
        self._prompted.extend(c.prompt is not None for c in candidates)

    def scores(self) -> Floats:
        text, prompt = (
            np.asarray(part.plain) if self._plain else part.normalised() for part in (self.texts, self.prompts)
        )
        beside = text.copy()
        beside[np.asarray(self._prompted, dtype=bool)] = prompt
        return np.asarray(self._weights[0] * text + self._weights[1] * beside)


class LossScorer:
    """The loss of each text under a model, in nats per token.

    Args:
        losses: of the token ids of texts.
    """

    def __init__(self, tokenizer: Any, losses: Losses):
        self._tokenizer = tokenizer
        self._losses = losses
        self._found = array("d")
        self.tokens: array[int] = array("q")

    def add(self, candidates: Sequence[Candidate], groups: Sequence[int]) -> None:
        encoded = token_ids(self._tokenizer, [candidate.text for candidate in candidates])
        self.tokens.extend(map(len, encoded))
        self._found.extend(self._losses(encoded))

    def scores(self) -> Floats:
        return np.asarray(self._found)


class DrawScorer:
    """A number between 0 and 1 from the seed and the text, independent of the order of the rows.

    Args:
        tokenizer: to count tokens; None does not count them.
    """

    def __init__(self, tokenizer: Any | None, seed: int):
        self._tokenizer = tokenizer
        self._seed = seed
        self._drawn = array("d")
        self.tokens: array[int] = array("q")

    def add(self, candidates: Sequence[Candidate], groups: Sequence[int]) -> None:
        if self._tokenizer is not None:
            self.tokens.extend(map(len, token_ids(self._tokenizer, [c.text for c in candidates])))
        for candidate in candidates:
            drawn = hashlib.sha256(f"{self._seed} {digest(candidate.text)}".encode()).digest()
            self._drawn.append(int.from_bytes(drawn[:6]) / 2**48)

    def scores(self) -> Floats:
        return np.asarray(self._drawn)
