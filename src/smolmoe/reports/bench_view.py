"""The report's view of `bench.json`: sizes, FLOPs, latency, tokens a second and memory, by batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from smolmoe.core import units
from smolmoe.reports.charts import Chart, beside, line, on, table
from smolmoe.reports.names import Looks

Values = Mapping[str, Any]


def bench_html(values: Values, name: str, looks: Looks) -> tuple[str, str]:
    """(label, HTML) of one measurement of speed."""
    models: Sequence[Values] = values.get("models") or ()
    label = bench_label(values)
    parts = [
        _machine(values),
        _chart(models, name, label, looks).html(),
        _sizes(models),
        _by_batch(models),
        _ratios(values),
    ]
    return label, "\n".join(part for part in parts if part)


def bench_label(values: Values) -> str:
    """Its models."""
    return " against ".join(str(model["name"]) for model in values.get("models") or ())


def bench_answer(values: Values) -> str | None:
    """Decoding beside the other model, in a sentence; None of one model alone."""
    ratios, models = list(values.get("ratios") or ()), list(values.get("models") or ())
    if not ratios or len(models) != 2:
        return None
    first = ratios[0]
    return (
        f"At batch size {first['batch_size']} {models[0]['name']} writes {first['decode']['median']:.2f} times the "
        f"tokens a second of {models[1]['name']}."
    )


def _machine(values: Values) -> str:
    machine = values.get("machine") or {}
    words = ", ".join(f"{key.replace('_', ' ')} {found}" for key, found in machine.items() if found not in (None, ""))
    return f'<p class="hint">{escape(words)}</p>' if words else ""


def _chart(models: Sequence[Values], name: str, label: str, looks: Looks) -> Chart:
    panels = [
        ("reading a prompt", "tokens a second", "prefill_tokens_per_second"),
        ("writing", "tokens a second", "decode_tokens_per_second"),
        ("peak memory", "GB", "peak_bytes"),
    ]
    traces, rows = [], []
    for panel, (_, _, key) in enumerate(panels):
        scale = 1e9 if key == "peak_bytes" else 1.0
        for model in models:
            points = [
                (row["batch_size"], row[key] / scale) for row in model.get("speed") or () if row.get(key) is not None
            ]
            more = {"legendgroup": str(model["name"]), "showlegend": panel == 0, **on(panel)}
            traces.append(line(str(model["name"]), points, looks(str(model["name"])), **more))
    for model in models:
        rows += [
            [str(model["name"]), row["batch_size"], *(row.get(key) for _, _, key in panels)] for row in model["speed"]
        ]
    layout = beside(*((title, "batch size", unit) for title, unit, _ in panels))
    for number in ("", "2", "3"):
        layout[f"xaxis{number}"] |= {"type": "category"}
        layout[f"yaxis{number}"] |= {"rangemode": "tozero"}
    head = ["model", "batch size", *(f"{title}, {'bytes' if unit == 'GB' else unit}" for title, unit, _ in panels)]
    caption = "Medians; more is better on the left and in the middle, less on the right."
    return Chart(name, f"Speed: {label}", caption, traces, layout, head, rows, height=380)


def _sizes(models: Sequence[Values]) -> str:
    def flops(model: Values, part: str) -> Any:
        return ((model.get("flops") or {}).get(part) or {}).get("total")

    def said(form: Callable[[float], str], number: float | None) -> str | None:
        return None if number is None else form(number)

    rows = [
        ["class", *(model.get("class_name") for model in models)],
        ["weights in", *(model.get("dtype") for model in models)],
        ["experts by", *(model.get("implementation") for model in models)],
        ["parameters", *(said(units.parameters, m["parameters"].get("total")) for m in models)],
        ["active for a token", *(said(units.parameters, m["parameters"].get("active")) for m in models)],
        [
            "active without embeddings",
            *(said(units.parameters, m["parameters"].get("active_without_embeddings")) for m in models),
        ],
        ["size of the weights", *(said(units.size, m["bytes"].get("total")) for m in models)],
        ["read for a written token", *(said(units.size, m["bytes"].get("active")) for m in models)],
        ["FLOPs a token, reading", *(said(units.flops, flops(m, "prefill")) for m in models)],
        ["FLOPs a token, writing", *(said(units.flops, flops(m, "decode")) for m in models)],
    ]
    return table(["", *(str(model["name"]) for model in models)], rows, caption="What a token costs")


def _by_batch(models: Sequence[Values]) -> str:
    rows = []
    for model in models:
        for row in model.get("speed") or ():
            first, token = row.get("first_token") or {}, row.get("token") or {}
            times = [_time(part.get(key)) for part in (first, token) for key in ("median", "p90")]
            rows.append([str(model["name"]), row["batch_size"], *times, _size(row.get("sample_bytes"))])
    head = ["model", "batch size", "first token", "p90", "a token", "p90", "memory of a sample"]
    return table(head, rows, caption="Latency")


def _ratios(values: Values) -> str:
    ratios, models = list(values.get("ratios") or ()), list(values.get("models") or ())
    if not ratios or len(models) != 2:
        return ""
    keys = ("first_token", "token", "prefill", "decode", "decode_for_bytes")
    rows = [
        [f"batch size {row['batch_size']}", *(_ratio(row.get(key)) for key in keys), row.get("peak")] for row in ratios
    ]
    words = ("first token, time", "a token, time", "reading, tokens/s", "writing, tokens/s", "writing for its bytes")
    caption = f"{models[0]['name']} over {models[1]['name']}, median [lowest, highest] over rounds"
    return table(["", *words, "peak memory"], rows, caption=caption)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else units.duration(seconds)


def _size(nbytes: float | None) -> str | None:
    return None if nbytes is None else units.size(nbytes)


def _ratio(found: Values | None) -> str | None:
    return None if not found else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
