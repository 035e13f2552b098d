"""How extract, prune, merge-experts and add-expert show what they wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.surgery.experts.job import ExpertResult
    from smolmoe.surgery.experts.measure import Losses, Measured


def show_experts(result: ExpertResult, given: Given) -> None:
    """The written model, its parameters, the measurements, and the effect on the loss."""
    before, after = result.before, result.after
    print(f"{f'would write {result.out}' if result.dry_run else result.out}: {result.architecture}, {result.said}")
    rows: list[tuple[str, object]] = [
        (
            "parameters",
            f"{units.parameters(after.parameters)} total, {units.parameters(after.active)} active per token",
        ),
        ("before", f"{units.parameters(before.parameters)} total, {units.parameters(before.active)} active per token"),
        ("files", f"{units.size(after.nbytes)} (before: {units.size(before.nbytes)})"),
        ("claim", f"{result.claim.kind}. {result.claim.reason}"),
    ]
    print_rows(rows)
    if result.measured is not None:
        _show_measured(result.measured)
    if result.losses is not None:
        _show_losses(result.losses)
    print(f"\n{'Planned' if result.dry_run else 'Done'} in {units.duration(result.seconds)}.")


def _show_measured(measured: Measured) -> None:
    print(
        f"\nMeasured on the files as written: against {measured.reference}, {measured.tokens} tokens of {measured.text}"
    )
    rows: list[tuple[str, object]] = [
        (
            "logits",
            f"max |Δ| {measured.max_abs:.2g}, mean |Δ| {measured.mean_abs:.2g} "
            f"(largest logit {measured.max_logit:.3g})",
        ),
        ("KL, top-1", f"{measured.kl:.2g} nats, {measured.top1:.2%} the same top-1 token"),
        ("loss", f"{measured.reference_loss:.4f} of the reference, {measured.loss:.4f} of the written files"),
    ]
    if measured.other_experts is not None:
        rows.append(
            ("other experts", f"max |Δ| {measured.other_experts:.2g}: the difference if other experts were chosen")
        )
    print_rows(rows)
    good = sum(check.passed for check in measured.checks)
    print(f"{good} of {len(measured.checks)} checks hold.")


def _show_losses(losses: Losses) -> None:
    found = losses.to_json()
    low, high = found["interval"]
    domains = losses.before.by_domain
    print()
    table(
        f"Held-out loss, nats per token ({found['before']['tokens']:,} tokens)",
        ("", "all", *domains),
        [
            ("before", f"{losses.before.loss:.4f}", *(f"{loss:.4f}" for loss in domains.values())),
            ("after", f"{losses.after.loss:.4f}", *(f"{loss:.4f}" for loss in losses.after.by_domain.values())),
        ],
    )
    print(f"Difference {found['delta']:+.4f} [{low:+.4f}, {high:+.4f}] (95%, over documents).")
