"""Tables of `selection.py`, from what its choices and runs wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from continued_table import interval, machine_line, read_arm
from machine import describe, put_between
from smolmoe.evaluation.held_out import DocumentLosses
from smolmoe.reports.growth import Run

BASE = "random"
Runs = dict[int, Run]


def write_results(root: Path, arms: Sequence[str]) -> None:
    """Put the tables into docs/reference/results.md, between the markers there."""
    runs = {arm: found for arm in arms if (found := read_arm(root, arm))}
    text = "\n".join([*_losses(runs), "", *_choices(root, runs)])
    text += f"\n\nMeasured on {describe()['cpu']}, one thread a run; {machine_line(root)}."
    put_between(Path(__file__).resolve().parents[1] / "docs" / "reference" / "results.md", "select", text)
    print(text)


def _losses(runs: dict[str, Runs]) -> list[str]:
    base = runs[BASE]
    first = next(iter(base.values()))
    domains = sorted(_by_domain(first))
    lines = [
        f"| selected by | loss | difference from {BASE} | {' | '.join(domains)} | steps to {BASE}'s final loss |",
        "| --- |" + " --- |" * (len(domains) + 3),
    ]
    before = statistics.mean(run.first for run in base.values())
    for arm, found in runs.items():
        both = sorted(found.keys() & base.keys())
        parts = [statistics.mean(_by_domain(run)[domain] for run in found.values()) for domain in domains]
        cells = [f"{statistics.mean(run.final for run in found.values()):.4f}"]
        cells.append("" if arm == BASE else interval([found[seed].final - base[seed].final for seed in both]))
        cells += [f"{loss:.4f}" for loss in parts]
        cells.append(str(first.steps) if arm == BASE else _steps([found[s] for s in both], [base[s] for s in both]))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    held_out = sum(first.documents["tokens"])
    seeds = ", ".join(map(str, sorted(base)))
    about = (
        f"Nats a token on {held_out:,} held-out tokens (before: {before:.4f}), domain by domain; "
        f"{first.tokens / 1e6:.3f} M tokens in {first.steps} steps; means of seeds {seeds}. "
        f"Differences from {BASE} are paired over seeds, with 95% intervals of Student's t; below 0 is better. Steps: "
        f"where the held-out curve, interpolated linearly, reaches {BASE}'s final loss; if it does not, the number of "
        f"steps in which {BASE} reaches the arm's final loss."
    )
    return [*lines, "", about]


def _by_domain(run: Run) -> dict[str, float]:
    return DocumentLosses.from_json(run.documents).by_domain


def _steps(found: Sequence[Run], base: Sequence[Run]) -> str:
    """In how many steps the arm comes to the last loss of the base, or the base to the arm's."""
    ours = [steps_to(run.losses, other.final) for run, other in zip(found, base, strict=True)]
    if all(steps is not None for steps in ours):
        return f"{statistics.mean(steps for steps in ours if steps is not None):.0f}"
    theirs = [steps_to(other.losses, run.final) for run, other in zip(found, base, strict=True)]
    if all(steps is not None for steps in theirs):
        return f"not reached ({BASE}: {statistics.mean(steps for steps in theirs if steps is not None):.0f})"
    return "reached in some seeds"


def steps_to(losses: dict[int, float], target: float) -> float | None:
    """The first step at which a held-out curve is at or below a loss, measurements joined by straight lines."""
    steps = sorted(losses)
    if losses[steps[0]] <= target:
        return float(steps[0])
    for before, after in pairwise(steps):
        if losses[after] <= target:
            return before + (after - before) * (losses[before] - target) / (losses[before] - losses[after])
    return None


def _choices(root: Path, runs: dict[str, Runs]) -> list[str]:
    lines = [
        "| selected by | documents | tokens | length, relative to the domain's mean "
        "| rank correlation of score and length |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in runs:
        found = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / arm).glob("chosen*/report.json"))
        ]
        rows, tokens, length, correlation = (
            statistics.mean(report[key] for report in found)
            for key in ("rows", "tokens", "chosen_length", "length_correlation")
        )
        lines.append(f"| {arm} | {rows:.0f} | {tokens:,.0f} | {length:.2f} times | {correlation:+.2f} |")
    return lines
