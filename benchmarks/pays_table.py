"""Tables, curves and crossing points of `pays.py`, from what its runs wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from continued_table import interval
from machine import HERE, describe, in_words, put_between
from smolmoe.core.json_text import read_object, read_rows
from smolmoe.core.statistics import ends, resample
from smolmoe.reports.drawing import save_figure
from smolmoe.reports.figures import Figure, Level, Lines, Series
from smolmoe.reports.names import Looks

DRAWS = 2000
LAST_FIFTH = 0.8


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        at: [P] shares of the run at which it was measured, 0 to 1.
        nll: [P, documents], nats.
        tokens: [documents].
        domains: of the documents.
        summary: the run's.
        windows: rows of kind "window" and "held_out" of its metrics, with their share of the run.
    """

    at: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    domains: tuple[str, ...]
    summary: dict[str, Any]
    windows: tuple[dict[str, Any], ...]

    @property
    def loss(self) -> np.ndarray:
        """[P] nats per token."""
        return self.nll.sum(1) / self.tokens.sum()


def read_curve(folder: Path) -> Curve:
    rows = list(read_rows(folder / "metrics.jsonl"))
    summary, documents = read_object(folder / "summary.json"), read_object(folder / "held_out.json")
    measured = [row for row in rows if row["kind"] == "held_out"]
    steps = summary["steps"]
    return Curve(
        np.array([row["step"] / steps for row in measured]),
        np.array([row["nll"] for row in measured]),
        np.array(documents["tokens"]),
        tuple(documents["domains"]),
        summary,
        tuple({**row, "share": row["step"] / steps} for row in rows if row["kind"] in ("window", "held_out")),
    )


def read_arm(root: Path, arm: str) -> dict[int, Curve]:
    """The finished runs of an arm by seed."""
    folders = sorted((root / arm).glob("seed-*"))
    return {
        int(folder.name.removeprefix("seed-")): read_curve(folder)
        for folder in folders
        if (folder / "summary.json").is_file()
    }


def write_results(work: Path) -> None:
    """Put tables and figure between the markers of docs/explanation/pays.md, and the figures into results/pays.json."""
    from pays import ARMS, PILOT, SAME_FLOPS, folder_name

    docs = HERE.parent / "docs"
    arms = {arm: found for arm in ARMS if (found := read_arm(work / "runs", folder_name(arm)))}
    tried = {arm: found for arm in (*ARMS, *PILOT) if (found := read_arm(work / "pilot", folder_name(arm)))}
    against = {arm: dense for dense, arm in SAME_FLOPS.items()}
    parts, figures = [], {}
    if arms:
        rows = [_row(arm, arms, against.get(arm, "dense")) for arm in arms]
        figures["arms"] = rows
        parts += [*_main_table(rows), "", *_routing_table(rows), "", *_domain_table(rows)]
        draw(docs / "images" / "pays.png", arms)
        parts += ["", "![Held-out loss against tokens and FLOPs](../images/pays.png)"]
    if tried:
        pilot = [_row(arm, tried, against.get(arm, "dense")) for arm in tried]
        figures["pilot"] = pilot
        parts += ["", "### The pilot", "", *_pilot_table(pilot)]
    machine = describe()
    text = "\n".join(parts) + f"\n\nMeasured on: {in_words(machine)}, one thread per run."
    (HERE / "results" / "pays.json").write_text(json.dumps({**figures, "machine": machine}, indent=1) + "\n")
    put_between(docs / "explanation" / "pays.md", "pays", text)
    print(text)


# -- one arm -------------------------------------------------------------------------------------------------------


def _row(arm: str, arms: Mapping[str, Mapping[int, Curve]], same_flops: str) -> dict[str, Any]:
    runs = arms[arm]
    first = next(iter(runs.values()))
    late = [row for run in runs.values() for row in run.windows if row["share"] > LAST_FIFTH]
    seconds = statistics.mean(run.summary["train_seconds"] / run.summary["steps"] for run in runs.values())
    row: dict[str, Any] = {
        "arm": arm,
        "seeds": sorted(runs),
        "tokens": first.summary["tokens"],
        "flops": first.summary["flops"],
        "before": _mean(run.loss[0] for run in runs.values()),
        "after": _mean(run.loss[-1] for run in runs.values()),
        "by_domain": _by_domain(runs.values()),
        "seconds_per_step": seconds,
        "memory": max(row["memory"] for run in runs.values() for row in run.windows if "memory" in row),
    }
    if any("max_violation" in found for found in late):
        row |= {
            "max_violation": _mean(found["max_violation"] for found in late if found["kind"] == "window"),
            "dead_experts": max(round(found["dead_experts"]) for found in late if found["kind"] == "held_out"),
            "experts": _most_experts(late),
            "similarity": {
                share: found
                for share in (0.0, 0.2, 0.5, 1.0)
                if (found := _similarity(runs.values(), share)) is not None
            },
        }
    if arm != "dense" and "dense" in arms:
        row["same_tokens"] = _against(runs, arms["dense"])
    if not arm.startswith("dense") and same_flops in arms:
        row["same_flops"] = _against(runs, arms[same_flops])
    return row


def _most_experts(rows: Sequence[Mapping[str, Any]]) -> int:
    return max(round(row["active_experts"] + row["dead_experts"]) for row in rows if "active_experts" in row)


def _similarity(runs: Any, share: float) -> float | None:
    """Mean similarity of experts at the measurement next to this share of the run."""
    values = []
    for run in runs:
        rows = [row for row in run.windows if "expert_similarity" in row]
        if rows:
            values.append(min(rows, key=lambda row: abs(row["share"] - share))["expert_similarity"])
    return statistics.mean(values) if values else None


def _mean(values: Any) -> float:
    return float(statistics.mean(map(float, values)))


def _by_domain(runs: Any) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for domain in sorted(set(run.domains)):
            at = np.array([name == domain for name in run.domains])
            found.setdefault(domain, []).append(float(run.nll[-1][at].sum() / run.tokens[at].sum()))
    return {domain: statistics.mean(values) for domain, values in found.items()}


def _against(runs: Mapping[int, Curve], dense: Mapping[int, Curve]) -> dict[str, Any]:
    """The difference from dense over the run: at its end by seed, where it crosses 0, and whether it still grows."""
    seeds = sorted(runs.keys() & dense.keys())
    at = runs[seeds[0]].at
    tokens = runs[seeds[0]].tokens
    gaps = np.stack([_gap(runs[seed], dense[seed], at) for seed in seeds])  # [seeds, P, documents]
    curve = gaps.mean(0).sum(-1) / tokens.sum()
    rng = np.random.default_rng(0)
    weights = resample(len(tokens), DRAWS, rng)  # [draws, documents]
    drawn_seeds = resample(len(seeds), DRAWS, rng) / len(seeds)
    drawn = np.einsum("ns,spd,nd->np", drawn_seeds, gaps, weights) / (weights @ tokens)[:, None]
    crossings = [crossing(at, row) for row in drawn]
    known = [one for one in crossings if one is not None]
    low, high = ends(drawn[:, -1])
    fifth = int(np.argmin(abs(at - LAST_FIFTH)))
    return {
        "by_seed": (gaps.sum(-1) / tokens.sum())[:, -1].tolist(),
        "difference": float(curve[-1]),
        "documents": [float(low), float(high)],
        "curve": dict(zip(at.round(4).tolist(), curve.round(5).tolist(), strict=True)),
        "crossing": crossing(at, curve),
        "crossing_interval": np.percentile(known, [2.5, 97.5]).tolist() if known else None,
        "crosses": len(known) / DRAWS,
        "last_fifth": float(curve[-1] - curve[fifth]),
    }


def _gap(run: Curve, dense: Curve, at: np.ndarray) -> np.ndarray:
    """[P, documents] differences at the same shares of both runs."""
    base = np.stack([np.interp(at, dense.at, column) for column in dense.nll.T], axis=1)
    own = np.stack([np.interp(at, run.at, column) for column in run.nll.T], axis=1)
    return own - base


def crossing(at: np.ndarray, gap: np.ndarray) -> float | None:
    """The share of the run after which the difference stays below 0; None if it ends above."""
    above = np.flatnonzero(gap >= 0)
    if len(above) == 0:
        return float(at[0])
    last = int(above[-1])
    if last == len(gap) - 1:
        return None
    return float(at[last] + (at[last + 1] - at[last]) * gap[last] / (gap[last] - gap[last + 1]))


# -- text ----------------------------------------------------------------------------------------------------------


def _main_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    dense = next(row for row in rows if row["arm"] == "dense")
    lines = [
        "| | FLOPs of dense | loss before | after | difference, same tokens | crossing "
        "| difference, same FLOPs | crossing |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [
            f"`{row['arm']}`",
            f"{row['flops'] / dense['flops']:.2f}",
            f"{row['before']:.4f}",
            f"{row['after']:.4f}",
        ]
        for key in ("same_tokens", "same_flops"):
            cells += [_difference(row[key]), _crossing(row[key], row["tokens"])] if key in row else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, dense["seeds"]))
    return [
        *lines,
        "",
        f"Nats per token; seeds {seeds}. Differences: mean over paired seeds [95% by Student's t over seeds] "
        "(95% by bootstrap over documents and seeds); below 0 is better than dense. Crossing: millions of tokens "
        "after which the mean difference stays below 0 [95% by the same bootstrap].",
    ]


def _difference(found: Mapping[str, Any]) -> str:
    low, high = found["documents"]
    return f"{interval(found['by_seed'])} ({low:+.4f}, {high:+.4f})"


def _crossing(found: Mapping[str, Any], tokens: int) -> str:
    if found["crossing"] is None:
        return "no"
    low, high = (f"{share * tokens / 1e6:.1f}" for share in found["crossing_interval"])
    return f"{found['crossing'] * tokens / 1e6:.1f} M [{low}, {high}]"


def _routing_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| | difference gained in the last fifth | MaxVio, last fifth | dead experts "
        "| similarity of experts at 0, 20, 50, 100% | s per step | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gained = f"{row['same_tokens']['last_fifth']:+.4f}" if "same_tokens" in row else ""
        routed = ["", "", ""]
        if "max_violation" in row:
            similar = ", ".join(f"{value:.3f}" for value in row["similarity"].values())
            routed = [f"{row['max_violation']:.2f}", f"{row['dead_experts']} of {row['experts']}", similar]
        cells = [gained, *routed, f"{row['seconds_per_step']:.3f}", f"{row['memory'] / 1e6:.0f} MB"]
        lines.append(f"| `{row['arm']}` | " + " | ".join(cells) + " |")
    return lines


def _domain_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    domains = list(rows[0]["by_domain"])
    lines = ["| loss after | " + " | ".join(domains) + " |", "| --- |" + " --- |" * len(domains)]
    return lines + [
        f"| `{row['arm']}` | " + " | ".join(f"{row['by_domain'][domain]:.4f}" for domain in domains) + " |"
        for row in rows
    ]


def _pilot_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| seed 0 | loss after | difference, same tokens | crossing | MaxVio, last fifth | dead experts |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        found = row.get("same_tokens")
        gap = [f"{found['difference']:+.4f}", _crossing(found, row["tokens"])] if found else ["", ""]
        routed = (
            [f"{row['max_violation']:.2f}", f"{row['dead_experts']} of {row['experts']}"]
            if "experts" in row
            else ["", ""]
        )
        lines.append("| " + " | ".join([f"`{row['arm']}`", f"{row['after']:.4f}", *gap, *routed]) + " |")
    return lines


def draw(path: Path, arms: Mapping[str, Mapping[int, Curve]]) -> None:
    """Differences from dense by tokens, and losses by FLOPs."""
    looks = Looks(arms)
    dense = arms["dense"]

    def lines(
        points: Callable[[str, Mapping[int, Curve]], list[tuple[float, float]]], names: Sequence[str]
    ) -> list[Series]:
        return [Series(arm, points(arm, arms[arm]), looks(arm)) for arm in names]

    def by_tokens(arm: str, runs: Mapping[int, Curve]) -> list[tuple[float, float]]:
        tokens = next(iter(runs.values())).summary["tokens"] / 1e6
        return [(share * tokens, gap) for share, gap in _against(runs, dense)["curve"].items()]

    def by_flops(arm: str, runs: Mapping[int, Curve]) -> list[tuple[float, float]]:
        first = next(iter(runs.values()))
        loss = np.mean([run.loss for run in runs.values()], axis=0)
        return [
            (share * first.summary["flops"] / 1e15, value) for share, value in zip(first.at, loss, strict=True) if share
        ]

    panels = [
        Lines(
            "At the same tokens",
            "tokens after the conversion (millions)",
            "loss minus that of dense (nats per token)",
            lines(by_tokens, [arm for arm in arms if not arm.startswith("dense")]),
            marks=[Level("dense", 0.0)],
        ),
        Lines(
            "By FLOPs",
            "FLOPs after the conversion (10^15)",
            "held-out loss (nats per token)",
            lines(by_flops, list(arms)),
        ),
    ]
    save_figure(Figure("pays", "After the conversion", "Lower is better.", panels, per_row=2, inches=4.4), path)
