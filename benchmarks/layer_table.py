"""Tables and the plot of `layer.py`, from what it measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layer import SHAPES, STOCK, TOKENS
from smolmoe.reports.drawing import look
from smolmoe.reports.names import style

Cases = dict[str, dict[str, Any]]
DIRECTIONS = {"forward": "forward", "both": "forward and backward"}
# Forward and backward, at most so many times a dense FFN of equal active FLOPs.
OF_DENSE = {("bf16", 4096): 1.25, ("fp32", 4096): 1.10, ("bf16", 512): 1.4, ("fp32", 512): 1.4}
OF_BYTES = {1: 1.3, 16: 1.3}  # forward, at most so many times the chosen experts' bytes over the bandwidth
AS_FAST = 1.02  # of the fastest stock: no repetition of a measurement agrees more closely


def table(cases: Cases) -> str:
    """The findings in Markdown, by number of threads."""
    lines = []
    for threads in sorted({case["threads"] for case in cases.values()}):
        chosen = [case for case in cases.values() if case["threads"] == threads]
        lines += [f"### {threads} thread{'s' if threads > 1 else ''}", "", *_targets(chosen), "", *_grid(chosen), ""]
    return "\n".join(lines).strip()


def _targets(cases: list[dict[str, Any]]) -> list[str]:
    experts, top_k, width = SHAPES[0]
    first = {(c["dtype"], c["direction"], c["tokens"]): c for c in cases if _shape(c) == SHAPES[0]}
    lines = [
        f"SmolLM-135M's shape: hidden 576, FFN {width}, {experts} experts, top-{top_k}.",
        "",
        "| | T | ours | of the dense FFN | products alone | fastest stock | asked | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (dtype, tokens), most in OF_DENSE.items():
        if (case := first.get((dtype, "both", tokens))) is not None:
            taken, dense = case["seconds"], case["seconds"]["dense"]
            lines.append(_line(f"{dtype}, {DIRECTIONS['both']}", case, dense, taken["products"] / dense, most))
    lines += [
        "",
        "| | T | ours | of the weights' bytes | of summing the weights | products alone | fastest stock | asked | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in ("bf16", "fp32"):
        for tokens, most in OF_BYTES.items():
            if (case := first.get((dtype, "forward", tokens))) is not None:
                bound, summed = case["touched"] / case["bandwidth"], case["seconds"]["weights"]
                of_sum = f"{case['seconds']['smolmoe'] / summed:.2f} | "
                products = case["seconds"]["products"] / bound
                lines.append(_line(f"{dtype}, forward", case, bound, products, most, of_sum))
    return lines


def _line(label: str, case: dict[str, Any], base: float, products: float, most: float, more: str = "") -> str:
    ours, stock = case["seconds"]["smolmoe"], _fastest(case)
    verdict = "met" if ours / base <= most else "missed"
    return (
        f"| {label} | {case['tokens']} | {1e3 * ours:.2f} ms | {ours / base:.2f} | {more}{products:.2f} "
        f"| {stock}, {case['seconds'][stock] / base:.2f} | {most:.2f} | {verdict} |"
    )


def _grid(cases: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Our time over that of the fastest stock implementation (e: eager, g: grouped_mm, b: batched_mm):",
        "",
        "| E, K, I | | | " + " | ".join(f"T = {tokens}" for tokens in TOKENS) + " |",
        "| --- " * (3 + len(TOKENS)) + "|",
    ]
    ratios = []
    for shape in SHAPES:
        for dtype in ("bf16", "fp32"):
            for direction, words in DIRECTIONS.items():
                row = [_find(cases, shape, dtype, direction, tokens) for tokens in TOKENS]
                ratios += [_ratio(case) for case in row if case is not None]
                cells = ["" if case is None else f"{_ratio(case):.2f} {_fastest(case)[0]}" for case in row]
                if any(cells):
                    lines.append(f"| {', '.join(map(str, shape))} | {dtype} | {words} | " + " | ".join(cells) + " |")
    slower = sum(ratio > AS_FAST for ratio in ratios)
    share = f"{len(ratios) - slower} of {len(ratios)}"
    lines += ["", f"Not slower than the fastest stock (within {AS_FAST - 1:.0%}) in {share} cases; the worst is "]
    lines[-1] += f"{max(ratios):.2f}, the median {sorted(ratios)[len(ratios) // 2]:.2f}."
    return lines


def plot(path: Path, cases: Cases) -> None:
    """Time over that of the dense FFN against T, at the fewest threads measured."""
    from matplotlib.figure import Figure

    threads = min(case["threads"] for case in cases.values())
    chosen = [case for case in cases.values() if case["threads"] == threads and _shape(case) == SHAPES[0]]
    with look():
        figure = Figure(figsize=(9, 6.4), layout="constrained")
        _panels(figure.subplots(2, 2, sharex=True, sharey=True), chosen)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120)


def _panels(grid: Any, chosen: list[dict[str, Any]]) -> None:
    for row, (direction, words) in zip(grid, DIRECTIONS.items(), strict=True):
        for axes, dtype in zip(row, ("bf16", "fp32"), strict=True):
            _curves(axes, [case for case in chosen if case["dtype"] == dtype and case["direction"] == direction])
            axes.set(xscale="log", yscale="log", title=f"{dtype}, {words}")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter("{x:g}")
        row[0].set_ylabel("time over that of the dense FFN")
    for axes in grid[1]:
        axes.set_xlabel("tokens T")
    grid[0][0].legend()


def _curves(axes: Any, cases: list[dict[str, Any]]) -> None:
    for place, name in enumerate(("smolmoe", *STOCK)):
        points = [(c["tokens"], c["seconds"][name] / c["seconds"]["dense"]) for c in cases if name in c["seconds"]]
        if points:
            width = 3 if name == "smolmoe" else 1.5
            axes.plot(*zip(*sorted(points), strict=True), **style(place), linewidth=width, label=name)
    axes.axhline(1, color="grey", linestyle=":", linewidth=1)


def _shape(case: dict[str, Any]) -> tuple[int, int, int]:
    return case["experts"], case["top_k"], case["width"]


def _find(
    cases: Iterable[dict[str, Any]], shape: tuple[int, int, int], dtype: str, direction: str, tokens: int
) -> dict[str, Any] | None:
    asked = (shape, dtype, direction, tokens)
    return next((c for c in cases if (_shape(c), c["dtype"], c["direction"], c["tokens"]) == asked), None)


def _fastest(case: dict[str, Any]) -> str:
    return min((name for name in STOCK if name in case["seconds"]), key=lambda name: case["seconds"][name])


def _ratio(case: dict[str, Any]) -> float:
    return case["seconds"]["smolmoe"] / case["seconds"][_fastest(case)]
