"""A teacher's log-probabilities of every next token of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smolmoe.data.tokens import end_of_text
from smolmoe.errors import RequestError, SourceError

SLICE = 2**24  # log-probabilities in memory at once: 64 MB in float32


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document; the teacher's predictions from `keep` on are used."""

    document: int
    start: int
    stop: int
    keep: int


def windows_of(document: int, tokens: int, longest: int) -> Iterator[Window]:
    """Windows over a document of this many tokens; each prediction is used once.

    A document longer than one window is read in windows that overlap by half, so that all predictions after the first
    window have at least half a window of context.
    """
    yield Window(document, 0, min(tokens, longest), 0)
    for covered, end in pairwise([*range(longest, tokens, max(1, longest // 2)), tokens]):
        yield Window(document, end - longest, end, covered)


def batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Batches of windows of similar length, the longest first, of at most this many tokens with padding."""
    group: list[Window] = []
    for window in sorted(windows, key=lambda window: window.start - window.stop):
        if group and (len(group) + 1) * (group[0].stop - group[0].start) > batch_tokens:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


class Teacher:
    """A causal LM that reads separate documents.

    Args:
        model: in memory, dense or an MoE.
        tokenizer: of the model.
        temperature: logits are divided by it.
        batch_tokens: tokens in a batch.

    Attributes:
        vocabulary: number of the tokenizer's ids; further rows of the embedding are not tokens, and ignored.
        longest: tokens of the longest window.

    Raises:
        RequestError: the model has fewer tokens than its tokenizer, or no room for two.
    """

    def __init__(self, model: Any, tokenizer: Any, *, temperature: float, batch_tokens: int):
        self.model = model.eval()
        self.temperature = temperature
        self.batch_tokens = batch_tokens
        self.start = end_of_text(tokenizer)
        config = model.config.get_text_config()
        self.vocabulary = vocabulary_of(tokenizer, config.vocab_size)
        self.longest = longest_window(config, batch_tokens)

    def read(self, documents: Sequence[NDArray[Any]]) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        """Rows (counted over all tokens of the documents, in order) and log-probabilities [M, V], in parts.

        The row of a token has the prediction for this token.

        Raises:
            SourceError: the teacher computes NaN or infinite logits.
        """
        firsts = np.cumsum([0, *map(len, documents)])
        windows = [w for number, ids in enumerate(documents) for w in windows_of(number, len(ids), self.longest)]
        for group in batches(windows, self.batch_tokens):
            rows = [np.arange(w.keep, w.stop) + firsts[w.document] for w in group]
            with torch.inference_mode():
                logits = self._logits(group, documents)
                kept = torch.cat([logits[at, w.keep - w.start : w.stop - w.start] for at, w in enumerate(group)])
                yield from self._parts(np.concatenate(rows), kept)

    def _logits(self, group: Sequence[Window], documents: Sequence[NDArray[Any]]) -> torch.Tensor:
        """[W, S, V'], padded on the right, which does not affect a causal model."""
        inputs = torch.zeros(len(group), max(w.stop - w.start for w in group), dtype=torch.long)
        for at, window in enumerate(group):
            ids = documents[window.document][max(0, window.start - 1) : window.stop - 1].astype(np.int64)
            ids = np.concatenate([[self.start], ids]) if window.start == 0 else ids
            inputs[at, : len(ids)] = torch.from_numpy(ids)
        logits: torch.Tensor = self.model(input_ids=inputs.to(self.model.device), use_cache=False).logits
        return logits

    def _parts(self, rows: NDArray[np.int64], logits: torch.Tensor) -> Iterator[tuple[NDArray[np.int64], torch.Tensor]]:
        at_once = max(1, SLICE // self.vocabulary)
        for first in range(0, len(rows), at_once):
            some = logits[first : first + at_once, : self.vocabulary].float() / self.temperature
            log_probabilities = some.log_softmax(-1)
            if bool(log_probabilities.isnan().any()):
                raise SourceError(
                    "computes NaN or infinite logits.",
                    field="teacher",
                    value=type(self.model).__name__,
                    fix="Use an intact checkpoint, or one stored in another dtype.",
                )
            yield rows[first : first + at_once], log_probabilities


def vocabulary_of(tokenizer: Any, rows: int) -> int:
    """The number of ids from 0 to the tokenizer's largest.

    Args:
        rows: of the teacher's embedding.

    Raises:
        RequestError: the embedding has fewer rows.
    """
    size = 1 + max(end_of_text(tokenizer), *tokenizer.get_vocab().values())
    if size > rows:
        raise RequestError(
            f"its tokenizer has {size:,} tokens, but the model only {rows:,}: they do not match.",
            field="teacher",
            value=getattr(tokenizer, "name_or_path", ""),
            fix="Add the model's own tokenizer to its folder.",
        )
    return size


def longest_window(config: Any, batch_tokens: int) -> int:
    """Tokens of the longest window, limited by the teacher's positions and the batch.

    Raises:
        RequestError: fewer than 2.
    """
    longest = min(getattr(config, "max_position_embeddings", None) or batch_tokens, batch_tokens)
    if longest < 2:
        raise RequestError("a window must contain at least two tokens.", field="batch_tokens", value=batch_tokens)
    return int(longest)
