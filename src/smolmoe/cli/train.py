"""train: one training run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolmoe.cli.calling import print_next
from smolmoe.cli.command import Command, Given
from smolmoe.cli.outcome import after_run, took
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.training.estimate import Estimate
    from smolmoe.training.run import TrainResult


def _show_estimate(costs: Estimate, given: Given) -> None:
    model = costs.size
    print(f"would write {costs.out}")
    rows = [("parameters", f"{units.parameters(model.total)} total, {units.parameters(model.active)} active per token")]
    if costs.steps > 0:
        rows += [
            ("steps", f"{costs.steps:,}"),
            ("tokens", units.tokens(costs.tokens)),
            ("FLOPs", units.flops(costs.flops)),
        ]
    else:
        rows.append(("steps", "known after the text is read (trainer.max_steps is not given)"))
    rows.append(("memory", f"about {units.size(costs.memory_bytes)}"))
    if costs.steps > 0:
        rows.append(("time", f"about {units.duration(costs.seconds)} on this machine"))
    print_rows(rows)
    for found in costs.findings:
        print(found)


def _show_trained(result: TrainResult, given: Given) -> None:
    from smolmoe.verification.findings import Finding

    summary = result.summary
    held_out, best = summary["held_out"], summary["best"]
    print(f"{result.out}: {units.parameters(summary['parameters']['total'])} parameters, {summary['steps']:,} steps")
    outcome = result.outcome
    by_domain = ", ".join(f"{domain} {loss:.4f}" for domain, loss in held_out["by_domain"].items())
    print_rows(
        [
            ("tokens", took(outcome)),
            ("device", "{device} ({name})".format(**summary["device"])),
            (
                "held-out loss",
                f"{outcome.measured[0]} nats per token on {held_out['tokens']:,} (now: {by_domain})",
            ),
            *_change_rows(summary),
            ("model", result.model),
            (
                "best",
                f"{result.best or 'no checkpoint kept'} (step {best['step']:,}, held-out loss {best['loss']:.4f})",
            ),
        ]
    )
    for found in summary.get("findings", ()):
        print(Finding(**found))
    for sample in summary["samples"]:
        print(f"\n--- {sample['prompt']}{sample['text']}")
    print_next(after_run(result, has_text=True))


def _change_rows(summary: dict[str, Any]) -> list[tuple[str, object]]:
    """The change of the held-out loss, if it was measured on the same documents before training."""
    if "change" not in summary:
        return []
    from smolmoe.evaluation.held_out import Change

    change = Change.from_json(summary["change"])
    return [("change", change)]


OPTIONS = ("recipe", "set", "out", "device", "seed", "resume", "overwrite", "dry_run")
COMMAND = Command(train.train, _show_trained, _show_estimate, only=OPTIONS)
