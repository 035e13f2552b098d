"""The report's view of `bench.json`: sizes, FLOPs, latency, throughput and memory, by batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smolmoe.core import units
from smolmoe.reports.blocks import Table
from smolmoe.reports.figures import Figure, Lines, Series
from smolmoe.reports.names import Looks
from smolmoe.results.bench import BenchResult, ModelBench, Ratio

_PANELS = (
    ("prefill", "tokens/s", "prefill_tokens_per_second", 1.0),
    ("decode", "tokens/s", "decode_tokens_per_second", 1.0),
    ("peak memory", "GB", "peak_bytes", 1e9),
)


def bench_label(found: BenchResult) -> str:
    """The names of its models."""
    return " against ".join(model.name for model in found.models)


def bench_answer(found: BenchResult) -> str | None:
    """A sentence on decoding speed compared with the other model; None for a single model."""
    if not found.ratios or len(found.models) != 2:
        return None
    first, (model, other) = found.ratios[0], found.models
    return (
        f"At batch size {first.batch_size}, {model.name} decodes {first.decode.median:.2f} times as many tokens per "
        f"second as {other.name}."
    )


def bench_machine(found: BenchResult) -> str:
    """The machine that it was measured on."""
    known = {key.replace("_", " "): value for key, value in found.machine.items() if value not in (None, "")}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def bench_figure(found: BenchResult, name: str, looks: Looks) -> Figure:
    """Throughput and memory by batch size."""
    panels = [
        Lines(
            title,
            "batch size",
            unit,
            [
                Series(m.name, [(at, getattr(row, key) / scale) for at, row in enumerate(m.speed)], looks(m.name))
                for m in found.models
            ],
            labels=[str(row.batch_size) for row in found.models[0].speed],
            bottom=0,
        )
        for title, unit, key, scale in _PANELS
    ]
    caption = "Medians. Higher is better for prefill and decode, lower is better for memory."
    return Figure(name, f"Speed: {bench_label(found)}", caption, panels, per_row=3)


def bench_tables(found: BenchResult) -> list[Table]:
    """Sizes, speed, and the ratios of two models."""
    return [_sizes(found.models), _speed(found.models), *_ratios(found)]


def _sizes(models: tuple[ModelBench, ...]) -> Table:
    rows: list[tuple[str, Callable[[ModelBench], Any]]] = [
        ("class", lambda model: model.class_name),
        ("dtype", lambda model: model.dtype),
        ("experts", _experts),
        ("parameters", lambda model: units.parameters(model.parameters.total)),
        ("active parameters per token", lambda model: units.parameters(model.parameters.active)),
        ("parameters without embeddings", lambda model: units.parameters(model.parameters.total_without_embeddings)),
        ("… active per token", lambda model: units.parameters(model.parameters.active_without_embeddings)),
        ("size of the weights", lambda model: units.size(model.bytes.total)),
        ("weights read per decoded token", lambda model: units.size(model.bytes.active)),
        ("prefill FLOPs per token", lambda model: units.flops(model.flops.prefill.total)),
        ("decode FLOPs per token", lambda model: units.flops(model.flops.decode.total)),
        ("training FLOPs per token", lambda model: model.flops.train and units.flops(model.flops.train.total)),
        ("experts computed per token", _computed),
    ]
    cells = [(label, [form(model) for model in models]) for label, form in rows]
    shown = [[label, *row] for label, row in cells if any(row)]
    return Table(["measure", *(model.name for model in models)], shown, "Cost per token")


def _experts(model: ModelBench) -> str | None:
    if model.experts is None:
        return None
    return f"{model.experts}, top-{model.top_k}, by {model.implementation or 'its class'}"


def _computed(model: ModelBench) -> str | None:
    work = model.flops.experts
    if work is None:
        return None
    verdict = "only the chosen" if work.only_chosen else f"NOT the {work.top_k} chosen"
    counts = [work.prefill, work.decode, *([] if work.train is None else [work.train])]
    return f"{' / '.join(f'{value:.2f}' for value in counts)} of {work.experts}: {verdict}"


def _speed(models: tuple[ModelBench, ...]) -> Table:
    rows = [
        [
            model.name,
            row.batch_size,
            *(units.duration(time) for of in (row.first_token, row.token) for time in (of.median, of.p90)),
            f"{row.prefill_tokens_per_second:,.4g}",
            f"{row.decode_tokens_per_second:,.4g}",
            units.size(row.peak_bytes),
            units.size(row.sample_bytes),
        ]
        for row_of in zip(*(model.speed for model in models), strict=True)
        for model, row in zip(models, row_of, strict=True)
    ]
    times = ["first token", "p90", "next token", "p90"]
    rates = ["prefill (tokens/s)", "decode (tokens/s)", "peak memory", "memory per sample"]
    return Table(["model", "batch size", *times, *rates], rows, "Speed (medians)")


def _ratios(found: BenchResult) -> list[Table]:
    if not found.ratios or len(found.models) != 2:
        return []
    rows = [
        [
            f"batch size {row.batch_size}",
            *map(_ratio, (row.first_token, row.token, row.prefill, row.decode, row.decode_for_bytes)),
            row.peak,
        ]
        for row in found.ratios
    ]
    head = ["", "time to first token", "time per next token", "prefill (tokens/s)", "decode (tokens/s)"]
    first, second = found.models
    caption = f"{first.name} divided by {second.name}: median [lowest, highest] over rounds"
    return [Table([*head, "decode relative to weights read", "peak memory"], rows, caption)]


def _ratio(found: Ratio | None) -> str | None:
    return None if found is None else f"{found.median:.2f} [{found.low:.2f}, {found.high:.2f}]"
