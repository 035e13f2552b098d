"""A teacher's cache, written by one process or by all that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.progress import Progress, silent

if TYPE_CHECKING:
    from smolmoe.distillation.cache import Job
    from smolmoe.results.distillation import CacheForecast, CacheResult


def cache_teacher(
    teacher: str | Path,
    data: str | Path | Sequence[str],
    out: str | Path,
    *,
    top_k: int | None = None,
    sampled: int | None = None,
    temperature: float = 1.0,
    device: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Progress | None = None,
    **options: Any,
) -> CacheResult:
    """Write what a teacher says of every token of a text, for `distill` in a training recipe.

    Args:
        teacher: folder or hub id of a causal LM of transformers, or of ours, dense or a mixture, with its tokenizer.
        data: files, folders, presets, hub data sets, or a training recipe (YAML), whose training text is read.
        top_k: keep the k largest probabilities and the remaining mass; default 20.
        sampled: keep so many draws from each distribution instead (arXiv 2503.16870).
        temperature: logits are divided by it, as the student's will be.
        resume: continue an incomplete cache, with the same request; a complete one is returned unchanged.
        **options: batch_tokens and shard_tokens of `CacheOptions`.

    Raises:
        SmolmoeError: a subclass that says what is wrong with teacher, text, options or folder.
    """
    from smolmoe.core.devices import kind, pick_device
    from smolmoe.distillation.cache import begin
    from smolmoe.distillation.options import cache_options
    from smolmoe.training.distributed import held_by_main

    asked = cache_options(top_k=top_k, sampled=sampled, temperature=temperature, **options)
    place = pick_device(device)
    local = _join(place)
    told = report or silent
    with held_by_main(Path(out)):
        return _write(
            lambda: begin(
                str(teacher),
                _names(data),
                Path(out),
                asked,
                stored_dtype=kind(place) == "cuda",
                resume=resume,
                overwrite=overwrite,
                report=told,
            ),
            local,
            told,
        )


def _write(begin: Callable[[], Job], device: str, report: Progress) -> CacheResult:
    from smolmoe.distillation.cache import describe, finish, write_shards
    from smolmoe.errors import SmolmoeError
    from smolmoe.training.distributed import in_turn, on_main, rank, world_size

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
    result = describe(job, reused=_sum(reused), seconds=time.perf_counter() - started)
    return replace(result, device=device)


def forecast_cache(
    teacher: str | Path,
    data: str | Path | Sequence[str],
    out: str | Path,
    *,
    top_k: int | None = None,
    sampled: int | None = None,
    temperature: float = 1.0,
    report: Progress | None = None,
    **options: Any,
) -> CacheForecast:
    """What `cache_teacher` would write; nothing is.

    Raises:
        SmolmoeError: as there, except for the folder.
    """
    from smolmoe.distillation.cache import forecast
    from smolmoe.distillation.options import cache_options

    asked = cache_options(top_k=top_k, sampled=sampled, temperature=temperature, **options)
    told = report or silent
    return forecast(str(teacher), _names(data), Path(out), asked, report=told)


def _names(data: str | Path | Sequence[str]) -> list[str]:
    return [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]


def _join(device: str) -> str:
    """Meet the other processes, where there are any; returns the device of this one."""
    from smolmoe.training.distributed import world_size

    if world_size() == 1:
        return device
    from accelerate import PartialState

    return str(PartialState(cpu=device == "cpu").device)


def _sum(number: int) -> int:
    """Over all processes."""
    from smolmoe.training.distributed import world_size

    if world_size() == 1:
        return number
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    total = torch.tensor([number], device=PartialState().device)
    dist.all_reduce(total)
    return int(total.item())


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
