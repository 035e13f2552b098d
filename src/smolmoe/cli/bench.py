"""bench: what a model costs to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.results.bench import BatchSpeed, BenchResult, ModelBench, Ratio
    from smolmoe.results.flops import FlopCounts


def show_bench(result: BenchResult) -> None:
    """The machine and the settings, the models' sizes and FLOPs, and a table for each batch size."""
    settings, machine = result.settings, result.machine
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    print_rows(
        [
            ("machine", f"{machine['processor']}, {threads}" if settings.device == "cpu" else machine["processor"]),
            ("settings", f"{settings.prompt_tokens} tokens in, {settings.new_tokens} out, {settings.rounds} rounds"),
        ]
    )
    names = _short([model.name for model in result.models])
    _show_models(result.models, names)
    _show_speed(result, names)
    if result.ratios:
        _show_ratios(result, names)


def _short(names: list[str]) -> list[str]:
    """The last part of each path, or the whole path if two have the same last part."""
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else names


def _show_models(models: tuple[ModelBench, ...], names: list[str]) -> None:
    rows: list[tuple[str, list[str]]] = [
        ("class", [model.class_name for model in models]),
        ("dtype", [model.dtype for model in models]),
        ("experts", [_experts(model) for model in models]),
        ("parameters", [_of(model, "total", "active") for model in models]),
        (
            "without embeddings",
            [_of(model, "total_without_embeddings", "active_without_embeddings") for model in models],
        ),
        ("memory (weights)", [units.size(model.bytes.total) for model in models]),
        ("read per token", [units.size(model.bytes.active) for model in models]),
        ("FLOPs per token, prefill", [units.flops(model.flops.prefill.total) for model in models]),
        ("FLOPs per token, decode", [units.flops(model.flops.decode.total) for model in models]),
        ("FLOPs per token, training", [_training(model.flops) for model in models]),
        ("experts computed per token", [_worked(model.flops) for model in models]),
    ]
    table("Models", ["", *names], [[label, *cells] for label, cells in rows if any(cell != "-" for cell in cells)])


def _experts(model: ModelBench) -> str:
    known = f"{model.experts}, top-{model.top_k}, by {model.implementation or 'its class'}"
    return "-" if model.experts is None else known


def _of(model: ModelBench, total: str, active: str) -> str:
    every, used = getattr(model.parameters, total), getattr(model.parameters, active)
    return units.parameters(every) + ("" if every == used else f", {units.parameters(used)} active")


def _training(flops: FlopCounts) -> str:
    return "-" if flops.train is None else units.flops(flops.train.total)


def _worked(flops: FlopCounts) -> str:
    work = flops.experts
    if work is None:
        return "-"
    said = "only the chosen" if work.only_chosen else f"NOT only the {work.top_k} chosen"
    counted = [work.prefill, work.decode, *([] if work.train is None else [work.train])]
    return f"{' / '.join(f'{value:.2f}' for value in counted)} of {work.experts}: {said}"


def _show_speed(result: BenchResult, names: list[str]) -> None:
    columns = ["batch", *(["model"] if len(names) > 1 else []), "first token", "per token", "p90"]
    columns += ["prefill tokens/s", "decode tokens/s", "peak memory", "per sample"]
    rows = []
    for at, batch_size in enumerate(result.settings.batch_sizes):
        for name, model in zip(names, result.models, strict=True):
            rows.append([batch_size, *([name] if len(names) > 1 else []), *_batch(model.speed[at])])
    table("Speed (medians; per token: for each prompt, after the first token)", columns, rows)


def _batch(speed: BatchSpeed) -> list[str]:
    return [
        units.duration(speed.first_token.median),
        units.duration(speed.token.median),
        units.duration(speed.token.p90),
        f"{speed.prefill_tokens_per_second:,.4g}",
        f"{speed.decode_tokens_per_second:,.4g}",
        units.size(speed.peak_bytes),
        units.size(speed.sample_bytes),
    ]


def _show_ratios(result: BenchResult, names: list[str]) -> None:
    columns = [
        "batch",
        "first token",
        "per token",
        "prefill tokens/s",
        "decode tokens/s",
        "decode per byte read",
        "memory",
    ]
    rows = [
        [
            ratios.batch_size,
            *map(_spread, (ratios.first_token, ratios.token, ratios.prefill, ratios.decode, ratios.decode_for_bytes)),
            f"{ratios.peak:.2f}",
        ]
        for ratios in result.ratios
    ]
    table(f"{names[0]} over {names[1]} (median of the rounds; lowest to highest)", columns, rows)


def _spread(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


COMMAND = Command(measure.bench, lambda result, given: show_bench(result))
