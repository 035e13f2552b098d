"""Tables of `continued.py`, from what its runs wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.evaluation.held_out import DocumentLosses, paired_difference
from smolmoe.reports.growth import Run, read_run

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of Student's t for that many seeds


def show(root: Path, arms: Sequence[str], explored: Sequence[str]) -> str:
    """The findings in Markdown."""
    lines = _main_table({arm: found for arm in arms if (found := read_arm(root, arm))})
    tried = {arm: found for arm in explored if (found := read_arm(root, arm))}
    if tried:
        lines += ["", *_explored_table(tried)]
    return "\n".join(lines)


def read_arm(root: Path, arm: str) -> dict[int, Run]:
    """The finished runs of an arm, by seed."""
    folders = sorted((root / arm).glob("seed-*"))
    return {
        int(folder.name.removeprefix("seed-")): read_run(arm, folder)
        for folder in folders
        if (folder / "summary.json").is_file()
    }


def _held_out_tokens(runs: dict[str, dict[int, Run]]) -> int:
    return sum(next(iter(next(iter(runs.values())).values())).documents["tokens"])


def _main_table(runs: dict[str, dict[int, Run]]) -> list[str]:
    dense, equal = runs["dense"], runs.get("dense-equal-flops", {})
    lines = [
        "| | tokens | FLOPs | loss before | loss after "
        "| difference from dense, same tokens | difference from dense, same FLOPs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, found in runs.items():
        first = next(iter(found.values()))
        before = statistics.mean(run.losses[0] for run in found.values())
        after = statistics.mean(run.final for run in found.values())
        against = [
            "" if arm.startswith("dense") and base is dense and arm == "dense" else _against(found, base)
            for base in (dense, equal)
        ]
        lines.append(
            f"| {arm} | {first.tokens / 1e6:.2f} M | {first.flops:.2e} | {before:.4f} | {after:.4f} | {against[0]} | "
            f"{'' if arm == 'dense-equal-flops' else against[1]} |"
        )
    lines += ["", f"Nats a token on {_held_out_tokens(runs):,} held-out tokens; means over seeds "]
    lines[-1] += (
        ", ".join(map(str, sorted(dense))) + ". Differences: mean over paired seeds [95% by Student's t over the "
    )
    lines[-1] += "seeds] (95% by bootstrap over documents); below 0 is better."
    lines += ["", *_domains(runs)]
    return lines


def _against(found: dict[int, Run], base: dict[int, Run]) -> str:
    seeds = sorted(found.keys() & base.keys())
    if not seeds:
        return ""
    gaps = [found[seed].final - base[seed].final for seed in seeds]
    mean = statistics.mean(gaps)
    said = f"{mean:+.4f}"
    if len(seeds) in T_95:
        half = T_95[len(seeds)] * statistics.stdev(gaps) / len(seeds) ** 0.5
        said += f" [{mean - half:+.4f}, {mean + half:+.4f}]"
    _, low, high = paired_difference(_pooled(found, seeds), _pooled(base, seeds))
    return f"{said} ({low:+.4f}, {high:+.4f})"


def _pooled(found: dict[int, Run], seeds: Sequence[int]) -> DocumentLosses:
    """The documents' losses, averaged over seeds."""
    all_losses = [DocumentLosses.from_json(found[seed].documents) for seed in seeds]
    nll = tuple(statistics.mean(values) for values in zip(*(losses.nll for losses in all_losses), strict=True))
    return DocumentLosses(nll, all_losses[0].tokens, all_losses[0].domains)


def _domains(runs: dict[str, dict[int, Run]]) -> list[str]:
    table: dict[str, dict[str, float]] = {}
    for arm, found in runs.items():
        table[arm] = _pooled(found, sorted(found)).by_domain
    domains = sorted(next(iter(table.values())))
    lines = ["| loss after | " + " | ".join(domains) + " |", "| --- |" + " --- |" * len(domains)]
    return lines + [f"| {arm} | " + " | ".join(f"{row[d]:.4f}" for d in domains) + " |" for arm, row in table.items()]


def _explored_table(tried: dict[str, dict[int, Run]]) -> list[str]:
    lines = ["| variant, seed 0 | tokens | loss before | loss after |", "| --- | --- | --- | --- |"]
    for arm, found in tried.items():
        run: Any = found[min(found)]
        lines.append(f"| {arm} | {run.tokens / 1e6:.2f} M | {run.losses[0]:.4f} | {run.final:.4f} |")
    return lines


def interval(values: Sequence[float]) -> str:
    """Mean and 95% interval of Student's t over seeds."""
    mean = statistics.mean(values)
    if len(values) not in T_95:
        return f"{mean:+.4f}"
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def machine_line(root: Path) -> str:
    """What the runs were made with, of their own records."""
    record = json.loads(next(root.glob("*/seed-*/**/model/smolmoe.json")).read_text(encoding="utf-8"))
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())
