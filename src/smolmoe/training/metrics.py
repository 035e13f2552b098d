"""Measurements of a run: rows of `metrics.jsonl`, and the same values for loggers such as TensorBoard."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.json_text import read_rows
from smolmoe.errors import CheckpointError, DataError

FILE = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, each with its `kind` and `step`.

    Kinds: "step" (losses of one step), "window" (routing, speed and memory since the last window), "held_out",
    "gradients" (of each term on the routers), "alarm", "preset_bias" (the load before the first step).

    Args:
        after: keep rows up to this step and append: a resumed run rewrites the later ones.

    Attributes:
        seconds, tokens: training time and tokens until the last row that was kept.

    Raises:
        CheckpointError: a row to keep cannot be read.
    """

    def __init__(self, path: Path, *, after: int = 0, write: bool = True):
        self.path = path
        self.seconds, self.tokens = 0.0, 0
        self._write = write
        if not write:
            return
        kept = _rows_until(path, after) if after and path.is_file() else []
        self.seconds = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
        self.tokens = max((row["tokens"] for row in kept if "tokens" in row), default=0)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(path)

    def add(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        row = {"kind": kind, "step": step, **values}
        if self._write:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of the steps up to this one.

    Raises:
        CheckpointError: a line other than the last one, which a kill may truncate, is not a row.
    """
    try:
        return [*takewhile(lambda row: (row.get("step") or 0) <= step, read_rows(path))]
    except DataError as error:
        fix = "Restore the file, or delete the line: it is then missing from the run's curves."
        raise CheckpointError(error.message, field="metrics", value=str(path), fix=fix) from error


class Clock:
    """Seconds spent training: measuring and saving stop it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def read(self) -> float:
        return self.seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def paused(self) -> Any:
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


def peak_memory(device: torch.device) -> int:
    """Bytes: peak allocation on a GPU, else the peak resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def perplexity(loss: float) -> float:
    """exp(loss), infinite if it exceeds the range of floats."""
    return math.exp(loss) if loss < 700 else math.inf


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers with keys `a/b`, for loggers."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat
