"""Tables of `specialise.py`, from what its runs and probes wrote."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continued_table import interval, machine_line
from machine import describe, put_between

Runs = list[dict[str, Any]]
DOCS = Path(__file__).resolve().parents[1] / "docs"


def write_results(root: Path) -> None:
    """Put the tables into docs/reference/results.md, between its markers, and a seed's matrix into docs/images."""
    named, emergent = (_probes(root / arm) for arm in ("named", "emergent"))
    lines = _named(named) + _losses(root, named) + _knocked_out(named) + _emergent(emergent)
    text = "\n".join(lines)
    text += f"\n\nMeasured on {describe()['cpu']}, one thread a run; {machine_line(root)}."
    put_between(DOCS / "reference" / "results.md", "specialise", text)
    shutil.copyfile(named[0]["folder"] / "after" / "routing.png", DOCS / "images" / "specialise-routing.png")
    print(text)


def _probes(folder: Path) -> Runs:
    """What the probes of each seed found."""
    return [
        json.loads((seed / "after" / "probe.json").read_text(encoding="utf-8")) | {"folder": seed}
        for seed in sorted(folder.glob("seed-*"))
        if (seed / "after" / "probe.json").is_file()
    ]


def _mean(values: Sequence[float], form: str = ".1%") -> str:
    """The mean, and the lowest and highest of the seeds."""
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _named(runs: Runs) -> list[str]:
    domains = runs[0]["domains"]
    last = [run["last_third"] for run in runs]
    lines = [
        f"**Named experts**, layers {', '.join(map(str, last[0]['layers']))}, the last third, {len(runs)} seeds: mean "
        "(lowest to highest).",
        "",
        "| | macro | " + " | ".join(domains) + " |",
        "| --- | --- |" + " --- |" * len(domains),
    ]
    rows = {
        "tokens whose first choice is their domain's expert": ("accuracy", "per_domain"),
        "linear probe on the dense model's FFN inputs there": ("dense_ceiling", "dense_ceiling_per_domain"),
        "linear probe on the MoE's router inputs": ("ceiling", "ceiling_per_domain"),
    }
    for label, (macro, per_domain) in rows.items():
        parts = [_mean([span[per_domain][d] for span in last]) for d in range(len(domains))]
        lines.append(f"| {label} | {_mean([span[macro] for span in last])} | {' | '.join(parts)} |")
    majority = [_mean([span["document_majority"][d] for span in last]) for d in range(len(domains))]
    macro = _mean([statistics.mean(span["document_majority"]) for span in last])
    lines.append(f"| documents, by majority of their tokens | {macro} | {' | '.join(majority)} |")
    return [*lines, ""]


def _by_domain(run: Path, step: int | None) -> dict[str, float]:
    """Held-out loss of each domain at a step of a run, or at its end."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    held_out = [row for row in rows if row["kind"] == "held_out"]
    found = held_out[-1] if step is None else next(row for row in held_out if row["step"] == step)
    return {**found["by_domain"], "all": found["loss"]}


def _losses(root: Path, runs: Runs) -> list[str]:
    columns = [*runs[0]["domains"], "all"]
    seeds = [run["folder"].name for run in runs]
    before = [_by_domain(root / "named" / seed / "routers", 0) for seed in seeds]
    arms = {
        arm: [_by_domain(root / arm / seed / "joint", None) for seed in seeds]
        for arm in ("named", "dense", "emergent")
        if all((root / arm / seed / "joint" / "summary.json").is_file() for seed in seeds)
    }
    lines = [
        "Held-out loss, nats a token, means over seeds; changes with 95% of Student's t over the seeds:",
        "",
        "| | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
        "| before | " + " | ".join(f"{statistics.mean(row[c] for row in before):.4f}" for c in columns) + " |",
    ]
    for arm, after in arms.items():
        gaps = [interval([a[c] - b[c] for a, b in zip(after, before, strict=True)]) for c in columns]
        lines.append(f"| {arm} | {' | '.join(gaps)} |")
    if "dense" in arms:
        pairs = list(zip(arms["named"], arms["dense"], strict=True))
        gaps = [interval([a[c] - b[c] for a, b in pairs]) for c in columns]
        lines.append(f"| named against dense | {' | '.join(gaps)} |")
    return [*lines, ""]


def _knocked_out(runs: Runs) -> list[str]:
    domains, labels = runs[0]["domains"], runs[0]["losses"]["labels"]
    lines = [
        "Loss added to each domain by removing one expert, means over seeds (bold: the domain that suffers most):",
        "",
        "| without | " + " | ".join(domains) + " |",
        "| --- |" + " --- |" * len(domains),
    ]
    for index, label in enumerate(labels):
        added = [
            statistics.mean(run["losses"]["knocked_out"][d][index] - run["losses"]["base"][domain] for run in runs)
            for d, domain in enumerate(domains)
        ]
        cells = [f"**{value:+.3f}**" if value == max(added) else f"{value:+.3f}" for value in added]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    flags = sorted({flag for run in runs for flag in run["losses"]["flags"]})
    return [*lines, "", *(f"- flagged: {flag}" for flag in flags), ""]


def _emergent(runs: Runs) -> list[str]:
    lines = [
        f"**Emergent experts**: {runs[0]['model']['experts']} experts, {len(runs)} seeds: mean (lowest to highest). "
        "By chance: 95th percentile with domain labels shuffled over documents.",
        "",
        "| layer | separation, bits | by chance | contrast | by chance | information, bits | evenness of the load |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for index, first in enumerate(runs[0]["layers"]):
        layers = [run["layers"][index] for run in runs]
        parts = [
            _mean([layer["separation"] for layer in layers], ".3f"),
            f"{max(layer['separation_baseline']['p95'] for layer in layers):.3f}",
            _mean([layer["contrast"] for layer in layers], ".1f"),
            f"{max(layer['contrast_baseline']['p95'] for layer in layers):.1f}",
            _mean([layer["mutual_information"] for layer in layers], ".2f"),
            _mean([layer["entropy"] for layer in layers], ".3f"),
        ]
        lines.append(f"| {first['layer']} | {' | '.join(parts)} |")
    return lines
