"""The report's view of `bench.json`: sizes, FLOPs, latency, tokens a second and memory, by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from smolmoe.report.charts import Chart, beside, line, on, table

Values = Mapping[str, Any]


def bench_html(values: Values, name: str) -> tuple[str, str]:
    """(label, HTML) of one measurement of speed."""
    models: Sequence[Values] = values.get("models") or ()
    label = " against ".join(str(model["name"]) for model in models)
    parts = [_machine(values), _chart(models, name, label).html(), _sizes(models), _by_batch(models), _ratios(values)]
    return label, "\n".join(part for part in parts if part)


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


def _chart(models: Sequence[Values], name: str, label: str) -> Chart:
    panels = [
        ("reading a prompt", "tokens a second", "prefill_tokens_per_second"),
        ("writing", "tokens a second", "decode_tokens_per_second"),
        ("peak memory", "GB", "peak_bytes"),
    ]
    traces, rows = [], []
    for panel, (_, _, key) in enumerate(panels):
        scale = 1e9 if key == "peak_bytes" else 1.0
        for place, model in enumerate(models):
            points = [
                (row["batch_size"], row[key] / scale) for row in model.get("speed") or () if row.get(key) is not None
            ]
            more = {"legendgroup": str(model["name"]), "showlegend": panel == 0, **on(panel)}
            traces.append(line(str(model["name"]), points, place, **more))
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

    rows = [
        ["class", *(model.get("class_name") for model in models)],
        ["weights in", *(model.get("dtype") for model in models)],
        ["experts by", *(model.get("implementation") for model in models)],
        ["parameters", *(model["parameters"].get("total") for model in models)],
        ["active for a token", *(model["parameters"].get("active") for model in models)],
        ["active without embeddings", *(model["parameters"].get("active_without_embeddings") for model in models)],
        ["bytes of weights", *(model["bytes"].get("total") for model in models)],
        ["bytes read for a written token", *(model["bytes"].get("active") for model in models)],
        ["FLOPs a token, reading", *(flops(model, "prefill") for model in models)],
        ["FLOPs a token, writing", *(flops(model, "decode") for model in models)],
    ]
    return table(["", *(str(model["name"]) for model in models)], rows, caption="What a token costs")


def _by_batch(models: Sequence[Values]) -> str:
    rows = []
    for model in models:
        for row in model.get("speed") or ():
            first, token = row.get("first_token") or {}, row.get("token") or {}
            times = [_ms(first.get("median")), _ms(first.get("p90")), _ms(token.get("median")), _ms(token.get("p90"))]
            rows.append([str(model["name"]), row["batch_size"], *times, row.get("sample_bytes")])
    head = ["model", "batch size", "first token, ms", "p90", "a token, ms", "p90", "bytes a sample"]
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


def _ms(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1000 * seconds:.1f}"


def _ratio(found: Values | None) -> str | None:
    return None if not found else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
