"""What a training shows while it runs: its loss and its speed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from smolmoe.core import units

SMOOTH = 0.9  # share of the loss so far in the shown one, at each step
WINDOW = 30.0  # seconds over which the speed is measured
AT_MOST_EVERY = 0.5  # seconds between readings: each waits for the device


class Pace:
    """The smoothed loss and the speed of this process.

    Attributes:
        tokens: number of tokens of the run so far, over all processes, padding not counted.
    """

    def __init__(self, processes: int = 1) -> None:
        self.tokens = 0
        self._processes = processes
        self._unread: Any = 0  # tokens that were not read off the device yet
        self._smooth: Any = 0.0
        self._weight = 0.0
        self._held_out: float | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._words = ""
        self._read_at = -math.inf

    def saw(self, inputs: Mapping[str, Any]) -> None:
        """Count the tokens of a micro-batch: those of its attention masks, or all."""
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        if masks:
            self._unread = self._unread + sum(mask.sum() for mask in masks)
        else:
            ids = (value for name, value in inputs.items() if name.endswith("input_ids"))
            self._unread = self._unread + sum(value.numel() for value in ids)

    def step(self, loss: torch.Tensor) -> None:
        """Take the loss of an optimiser step; it stays on the device."""
        self._smooth = SMOOTH * self._smooth + (1 - SMOOTH) * loss.detach().float()
        self._weight = SMOOTH * self._weight + 1 - SMOOTH

    def measured(self, held_out: float) -> None:
        """Take a held-out loss."""
        self._held_out = held_out
        self._read_at = -math.inf

    def read(self) -> int:
        """The tokens so far."""
        self.tokens += int(self._unread) * self._processes
        self._unread = 0
        return self.tokens

    def words(self, seconds: float, *, now: float | None = None) -> str:
        """E.g. "loss 2.3412, held out 2.4012, 12.3 K tokens/s".

        Args:
            seconds: of training so far, without measurements.
            now: time in seconds; default the clock's.
        """
        now = time.monotonic() if now is None else now
        if now - self._read_at < AT_MOST_EVERY:
            return self._words
        self._read_at = now
        parts = [f"loss {float(self._smooth) / self._weight:.4f}"] if self._weight else []
        parts += [f"held out {self._held_out:.4f}"] if self._held_out is not None else []
        rate = self._rate(seconds)
        parts += [f"{units.tokens(rate)} tokens/s"] if rate else []
        self._words = ", ".join(parts)
        return self._words

    def _rate(self, seconds: float) -> float | None:
        self._marks.append((seconds, self.read()))
        while len(self._marks) > 2 and seconds - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        (begun, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - begun) if ended > begun else None
