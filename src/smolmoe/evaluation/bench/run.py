"""What a model costs, alone or compared with another: parameters, FLOPs, seconds, memory.

Each model runs in a separate process, so that its memory is measured alone. Two models take turns, batch by batch, so
that a slow moment of the machine affects both. They run as `smolmoe generate` runs them.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.core.devices import device_name, pick_device
from smolmoe.core.progress import Progress, silent
from smolmoe.evaluation.bench.process import Worker
from smolmoe.evaluation.speed import Reading, summarise
from smolmoe.recipe.bench import BenchRecipe
from smolmoe.results.bench import BatchRatios, BenchResult, BenchSettings, ModelBench, ModelFacts, Ratio
from smolmoe.results.flops import FlopCounts

WARM_UP_TOKENS = 3


def bench(recipe: BenchRecipe, *, report: Progress | None = None) -> BenchResult:
    """Measure one model, or two in turns; no remote code is run.

    Raises:
        RequestError: more tokens than a model has positions, or no such device.
        SourceError, CheckpointError: no such model, or its files are missing or corrupt.
    """
    settings = recipe.settings.model_copy(update={"device": pick_device(recipe.device)})
    names = {field: name for field in ("model", "against") if (name := getattr(recipe, field)) is not None}
    for field, name in names.items():
        open_checkpoint(name, field=field)
    report = report or silent
    workers: list[Worker] = []
    try:
        for at, name in enumerate(names.values()):
            report("Loading", at, len(names))
            workers.append(Worker(name, settings))
            workers[-1].ready()
        readings = _take_turns(workers, settings, report)
        flops = []
        for at, worker in enumerate(workers):
            report("Counting FLOPs", at, len(workers))
            flops.append(worker.ask("flops"))
    finally:
        for worker in workers:
            worker.close()
    return _result(settings, [worker.facts for worker in workers], flops, readings)


Readings = list[dict[int, list["Reading"]]]


def _take_turns(workers: Sequence[Worker], settings: BenchSettings, report: Progress) -> Readings:
    """For each model the readings of each batch size, by round; the first round is a warm-up."""
    found: Readings = [{size: [] for size in settings.batch_sizes} for _ in workers]
    total = len(settings.batch_sizes) * (settings.rounds + 1)
    done = 0
    for size in sorted(settings.batch_sizes):
        for number in range(settings.rounds + 1):
            report("Measuring", done, total)
            order = list(enumerate(workers))
            for at, worker in order if number % 2 else reversed(order):
                new_tokens = settings.new_tokens if number else min(WARM_UP_TOKENS, settings.new_tokens)
                reading = worker.ask("read", size, new_tokens)
                if number:
                    found[at][size].append(reading)
            done += 1
    return found


def _result(
    settings: BenchSettings, facts: list[ModelFacts], flops: list[FlopCounts], readings: Readings
) -> BenchResult:
    models = tuple(
        ModelBench(
            **vars(fact),
            flops=count,
            speed=tuple(summarise(size, settings.prompt_tokens, runs[size]) for size in settings.batch_sizes),
        )
        for fact, count, runs in zip(facts, flops, readings, strict=True)
    )
    ratios: tuple[BatchRatios, ...] = ()
    if len(models) == 2:
        of_bytes = facts[0].bytes.active / facts[1].bytes.active
        ratios = tuple(
            batch_ratios(size, readings[0][size], readings[1][size], of_bytes) for size in settings.batch_sizes
        )
    return BenchResult(settings=settings, machine=machine(settings), models=models, ratios=ratios)


def batch_ratios(size: int, first: Sequence[Reading], second: Sequence[Reading], of_bytes: float) -> BatchRatios:
    """The first model divided by the second, by round."""
    waits = [a.first_token / b.first_token for a, b in zip(first, second, strict=True)]
    tokens = [statistics.median(a.tokens) / statistics.median(b.tokens) for a, b in zip(first, second, strict=True)]
    peaks = [max(reading.peak_bytes for reading in readings) for readings in (first, second)]
    return BatchRatios(
        size,
        _ratio(waits),
        _ratio(tokens),
        _ratio([1 / wait for wait in waits]),
        _ratio([1 / token for token in tokens]),
        _ratio([of_bytes / token for token in tokens]) if size == 1 else None,
        peaks[0] / peaks[1],
    )


def _ratio(values: Sequence[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))


def machine(settings: BenchSettings) -> dict[str, Any]:
    """The machine that it was measured on."""
    threads = settings.threads or torch.get_num_threads()
    return {
        "processor": device_name(settings.device),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
    }
