"""Text while it is written: passed on piece by piece, ended at a stop text, and interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue
from typing import Any

import torch
from transformers import StoppingCriteria

from smolmoe.inference.sampling import answer_text, until_end

OnText = Callable[[str], None]  # called with each piece of a text, in order
_INCOMPLETE = "\ufffd"  # decoded from some of the bytes of a character


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop texts in it."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of an unfinished text that further tokens do not change.

    Left out are an incomplete character at the end, and what may be the beginning of a stop text.
    """
    text = until_stop(text, stops).rstrip(_INCOMPLETE)
    begun = (
        size for stop in stops for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
    )
    return text[: len(text) - max(begun, default=0)]


class Pieces:
    """Passes on what is new of a growing text."""

    def __init__(self, on_text: OnText):
        self._on_text = on_text
        self._passed = ""

    def grow(self, text: str) -> None:
        # A few tokenizers take a space back when a comma follows: what is passed on stays.
        if len(text) > len(self._passed) and text.startswith(self._passed):
            piece, self._passed = text[len(self._passed) :], text
            self._on_text(piece)

    def end(self, text: str) -> None:
        """The rest of the complete text."""
        common = next((at for at, (a, b) in enumerate(zip(text, self._passed, strict=False)) if a != b), None)
        self.grow(text if common is None else self._passed + text[common:])


class Watch(StoppingCriteria):
    """Looks at the answers of a batch after each token: streams the first, and ends those with a stop text.

    Attributes:
        lengths: tokens of each answer that a stop text or an interruption has ended, else None.
        stopped: whether a stop text has ended each.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[list[int]],
        start: int,
        ends: Sequence[int],
        stops: Sequence[str],
        on_text: OnText | None,
        interrupted: Callable[[], bool],
    ):
        self._tokenizer, self._prompts, self._start, self._ends = tokenizer, prompts, start, ends
        self._stops, self._interrupted = stops, interrupted
        self.pieces = None if on_text is None else Pieces(on_text)
        self.lengths: list[int | None] = [None] * len(prompts)
        self.stopped = [False] * len(prompts)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        if self._stops or self.pieces is not None:
            for row, answer in enumerate(input_ids[:, self._start :].tolist()):
                if self.lengths[row] is None:
                    self._look(row, answer)
        if self._interrupted():
            now = input_ids.shape[1] - self._start
            self.lengths = [now if length is None else length for length in self.lengths]
        done = [length is not None for length in self.lengths]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)

    def _look(self, row: int, answer: list[int]) -> None:
        ids = until_end(answer, self._ends)
        text = answer_text(self._tokenizer, self._prompts[row], ids)
        if until_stop(text, self._stops) != text:
            self.lengths[row], self.stopped[row] = len(ids), True
        if self.pieces is not None and row == 0:
            self.pieces.grow(settled(text, self._stops))


def iterate(run: Callable[[OnText], object], interrupt: Callable[[], None]) -> Iterator[str]:
    """The pieces that `run` passes on, while it runs in a thread.

    Args:
        interrupt: ends `run` early; called if the caller stops iterating.
    """
    pieces: Queue[str | BaseException | None] = Queue()

    def work() -> None:
        try:
            run(pieces.put)
            pieces.put(None)
        except BaseException as error:  # raised again where the pieces are read
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        interrupt()
        thread.join()
