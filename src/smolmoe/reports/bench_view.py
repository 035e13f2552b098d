"""The report's view of `bench.json`: sizes, FLOPs, latency, throughput and memory, by batch size."""

from __future__ import annotations

from typing import Any

from smolmoe.core import units
from smolmoe.reports.blocks import Chart, Table
from smolmoe.reports.names import Looks
from smolmoe.reports.plot import beside, line, on
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


def bench_chart(found: BenchResult, name: str, looks: Looks) -> Chart:
    """Throughput and memory by batch size."""
    traces = []
    for panel, (_, _, key, scale) in enumerate(_PANELS):
        for model in found.models:
            points = [(row.batch_size, getattr(row, key) / scale) for row in model.speed]
            more = {"legendgroup": model.name, "showlegend": panel == 0, **on(panel)}
            traces.append(line(model.name, points, looks(model.name), **more))
    layout = beside(*((title, "batch size", unit) for title, unit, _, _ in _PANELS))
    for number in ("", "2", "3"):
        layout[f"xaxis{number}"] |= {"type": "category"}
        layout[f"yaxis{number}"] |= {"rangemode": "tozero"}
    return Chart(
        name,
        f"Speed: {bench_label(found)}",
        "Medians. Higher is better for prefill and decode, lower is better for memory.",
        traces,
        layout,
        ["model", "batch size", "prefill (tokens/s)", "decode (tokens/s)", "peak memory (bytes)"],
        [
            [m.name, row.batch_size, *(getattr(row, key) for _, _, key, _ in _PANELS)]
            for m in found.models
            for row in m.speed
        ],
        height=380,
    )


def bench_tables(found: BenchResult) -> list[Table]:
    """Sizes, latency, and the ratios of two models."""
    return [_sizes(found.models), _latency(found.models), *_ratios(found)]


def _sizes(models: tuple[ModelBench, ...]) -> Table:
    rows: list[list[Any]] = [
        ["class", *(model.class_name for model in models)],
        ["dtype", *(model.dtype for model in models)],
        ["experts implementation", *(model.implementation for model in models)],
        ["parameters", *(units.parameters(model.parameters.total) for model in models)],
        ["active parameters per token", *(units.parameters(model.parameters.active) for model in models)],
        ["… without embeddings", *(units.parameters(m.parameters.active_without_embeddings) for m in models)],
        ["size of the weights", *(units.size(model.bytes.total) for model in models)],
        ["weights read per decoded token", *(units.size(model.bytes.active) for model in models)],
        ["prefill FLOPs per token", *(units.flops(model.flops.prefill.total) for model in models)],
        ["decode FLOPs per token", *(units.flops(model.flops.decode.total) for model in models)],
    ]
    return Table(["measure", *(model.name for model in models)], rows, "Cost per token")


def _latency(models: tuple[ModelBench, ...]) -> Table:
    rows = [
        [
            model.name,
            row.batch_size,
            *(units.duration(time) for of in (row.first_token, row.token) for time in (of.median, of.p90)),
            units.size(row.sample_bytes),
        ]
        for model in models
        for row in model.speed
    ]
    times = ["first token, median", "first token, p90", "next token, median", "next token, p90"]
    return Table(["model", "batch size", *times, "memory per sample"], rows, "Latency")


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
