"""How align sft, dpo and cpo show their result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolmoe.cli.calling import print_next
from smolmoe.cli.command import Given
from smolmoe.cli.outcome import after_run, took
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.alignment.run import AlignEstimate, AlignResult


def show_estimate(costs: AlignEstimate, given: Given) -> None:
    """What an alignment would cost."""
    print(f"would write {costs.out}")
    left_out = ", ".join(f"{number} {reason.replace('_', ' ')}" for reason, number in costs.dropped.items() if number)
    print_rows(
        [
            (
                "parameters",
                f"{units.count(costs.total)} total, {units.count(costs.active)} active per token, "
                f"{units.count(costs.trainable)} trained",
            ),
            ("rows", f"{costs.rows:,} to train on, {costs.validation:,} to measure on"),
            *([("left out", left_out)] if left_out else []),
            *_not_used(costs.ignored),
            ("steps", f"{costs.steps:,}"),
            ("tokens", units.tokens(costs.tokens)),
            ("FLOPs", units.flops(costs.flops)),
            ("memory", f"about {units.size(costs.memory_bytes)}"),
            ("time", f"about {units.duration(costs.seconds)} on this machine, and measuring before and after"),
        ]
    )
    for found in costs.findings:
        print(found)


def show_aligned(result: AlignResult, given: Given) -> None:
    """The model, and how it measured before and after."""
    from smolmoe.evaluation.held_out import Change
    from smolmoe.verification.findings import Finding

    summary, outcome = result.summary, result.outcome
    sizes, rows = summary["parameters"], summary["rows"]
    print(
        f"{result.out}: {units.count(sizes['trainable'])} of {units.count(sizes['total'])} parameters, "
        f"{summary['steps']:,} steps"
    )
    left_out = ", ".join(f"{n} {why.replace('_', ' ')}" for why, n in summary["dropped"]["train"].items() if n)
    print_rows(
        [
            ("rows", f"{rows['train']:,} trained on" + (f", left out: {left_out}" if left_out else "")),
            *_not_used(summary["ignored"]),
            ("tokens", took(outcome)),
            ("device", "{device} ({name})".format(**summary["device"])),
            *_drift_rows(summary),
            ("model", result.model),
        ]
    )
    table(f"On {rows['validation']:,} held-out rows", ("", "before", "after"), _figures(summary))
    print(f"held-out loss: {Change.from_json(summary['change'])}")
    for found in summary.get("findings", ()):
        print(Finding(**found))
    if "corrections" in summary:
        _show_corrections(summary["corrections"])
    print_next(after_run(result, has_text=False))


def _not_used(ignored: dict[str, int]) -> list[tuple[str, object]]:
    """Columns and messages of the rows that no example uses."""
    return [("not used", f"{what}: {number}") for what, number in ignored.items()]


def _drift_rows(summary: dict[str, Any]) -> list[tuple[str, object]]:
    drift = summary.get("drift")
    if drift is None:
        return []
    said = f"{drift['changed']:.2%} of choices changed, KL {drift['kl']:.2e}, weights moved {drift['weights']:.2%}"
    return [(f"routers ({summary['router']})", f"{said} ({drift['tokens']:,} tokens of prompts)")]


def _figures(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    before, after = summary["before"], summary["after"]
    found = [("loss, nats per token", f"{before['loss']:.4f}", f"{after['loss']:.4f}")]
    if "margin" in before:
        found += [
            ("chosen answer more likely", f"{before['accuracy']:.1%}", f"{after['accuracy']:.1%}"),
            ("margin, nats", f"{before['margin']:.3f}", f"{after['margin']:.3f}"),
            ("margin grew", "", f"{after['reward_accuracy']:.1%}"),
        ]
    if "routing" in before:
        found.append(
            ("balance of experts", f"{before['routing']['balance']:.3f}", f"{after['routing']['balance']:.3f}")
        )
    return found


def _show_corrections(scores: dict[str, Any]) -> None:
    before, after = scores["before"], scores["after"]
    rows = [
        (
            name,
            *(f"{system['metrics'][name]['value']:.1f}" for system in (after["copy"], before["model"], after["model"])),
        )
        for name in after["model"]["metrics"]
    ]
    table(f"Corrections of {after['model']['rows']} texts", ("percent", "input copied", "before", "after"), rows)


OPTIONS = ("recipe", "set", "out", "device", "seed", "resume", "overwrite", "dry_run")
