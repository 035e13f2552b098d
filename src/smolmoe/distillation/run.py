"""A teacher's cache, written by one process or by all that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from smolmoe.core.devices import kind, pick_device
from smolmoe.core.progress import Progress, silent
from smolmoe.distillation.cache import Job, begin, describe, finish, forecast, write_shards
from smolmoe.distillation.options import cache_options
from smolmoe.errors import SmolmoeError
from smolmoe.results.distillation import CacheForecast, CacheResult
from smolmoe.training.distributed import held_by_main, in_turn, on_main, rank, world_size


def cache_teacher(
    teacher: str | Path,
    data: str | Path | Sequence[str],
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    report: Progress | None = None,
    **options: Any,
) -> CacheResult:
    """Write a teacher's probabilities for every token of a text, for `distill` in a training recipe.

    Args:
        teacher: folder or hub id of a causal LM, dense or an MoE, with its tokenizer.
        data: files, folders, presets, hub data sets, or a training recipe (YAML), whose training text is read.
        resume: continue an incomplete cache, with the same request; a complete one is returned unchanged.
        **options: as `cache_options` takes them.

    Raises:
        SmolmoeError: a subclass that names the problem with teacher, text, options or folder.
    """
    asked, place = cache_options(**options), pick_device(device)
    start = partial(
        begin,
        str(teacher),
        _names(data),
        Path(out),
        asked,
        stored_dtype=kind(place) == "cuda",
        resume=resume,
        overwrite=overwrite,
        report=report or silent,
    )
    local = _join(place)
    with held_by_main(Path(out)):
        return _write(start, local, report or silent)


def _write(begin: Callable[[], Job], device: str, report: Progress) -> CacheResult:
    started = time.perf_counter()
    job = on_main(begin)
    error: SmolmoeError | None = None
    reused = 0
    if not job.finished:
        try:
            reused = write_shards(job, rank=rank(), ranks=world_size(), device=device, report=report)
        except SmolmoeError as found:
            error = found
        in_turn(lambda: _raise(error))  # all wait for all, and fail together
        on_main(lambda: finish(job))
    if world_size() > 1:
        reused = sum(gather_object([reused]))
    result = describe(job, reused=reused, seconds=time.perf_counter() - started)
    return replace(result, device=device)


def forecast_cache(
    teacher: str | Path,
    data: str | Path | Sequence[str],
    out: str | Path,
    *,
    report: Progress | None = None,
    **options: Any,
) -> CacheForecast:
    """What `cache_teacher` would write; nothing is written.

    Raises:
        SmolmoeError: as there, except for the folder.
    """
    return forecast(str(teacher), _names(data), Path(out), cache_options(**options), report=report or silent)


def _names(data: str | Path | Sequence[str]) -> list[str]:
    return [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]


def _join(device: str) -> str:
    """Meet the other processes, if there are any; returns the device of this one."""
    if world_size() == 1:
        return device
    return str(PartialState(cpu=device == "cpu").device)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
