"""The results that a report shows."""

from __future__ import annotations

from pathlib import Path

from smolmoe.results.base import Result, read_plain
from smolmoe.results.bench import BenchResult
from smolmoe.results.comparison import Comparison
from smolmoe.results.scaling_law import Sweep

FILES = ("compare.json", "sweep.json", "bench.json")
_KINDS: tuple[type[Result], ...] = (Comparison, Sweep, BenchResult)


def read_result(path: Path) -> Result | None:
    """The result of compare, sweep or bench in a file; None if the file is something else.

    Raises:
        DataError, CheckpointError: as `Result.read`.
    """
    values = read_plain(path)
    return next((kind.from_json(values, path) for kind in _KINDS if kind.is_one(values)), None)
