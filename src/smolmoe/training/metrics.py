"""What a run measures of itself: rows of `metrics.jsonl`, and the same values for TensorBoard and its like."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from smolmoe.errors import CheckpointError

FILE = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `kind` and `step`.

    Kinds: "step" (losses of one step), "window" (routing, speed and memory since the last window), "held_out",
    "gradients" (of each term on the routers), "alarm".

    Args:
        after: keep rows up to this step and append after them: later rows, which a resumed run rewrites, are dropped.

    Attributes:
        seconds: spent training until the last row that was kept.

    Raises:
        CheckpointError: a row to keep cannot be read.
    """

    def __init__(self, path: Path, *, after: int = 0, write: bool = True):
        self.path = path
        self.seconds = 0.0
        self._write = write
        if not write:
            return
        kept = _rows_until(path, after) if after and path.is_file() else []
        self.seconds = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
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
        CheckpointError: one of them is no row; only the file's last line may have been cut short.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if row["step"] > step:
                break
            rows.append({**row, "seconds": float(row["seconds"])} if "seconds" in row else {**row})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):
                break
            raise CheckpointError(
                f"line {number} is not a row of measurements.",
                field="metrics",
                value=str(path),
                fix="Restore the file, or delete the line: it is then missing from the run's curves.",
            ) from error
    return rows


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
    """Bytes: the most that was allocated on a GPU, else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is no float."""
    return math.exp(loss) if loss < 700 else math.inf


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as `a/b`: what loggers take."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{name}"] = value
    return flat


def is_main_process() -> bool:
    """Whether this process writes: the only one, or rank 0."""
    return int(os.environ.get("RANK", "0")) == 0
