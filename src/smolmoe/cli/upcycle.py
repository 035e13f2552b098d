"""upcycle: a dense model to an MoE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.cli.verify import show_verification
from smolmoe.core import units
from smolmoe.verbs import convert

if TYPE_CHECKING:
    from smolmoe.surgery.run import UpcycleResult
    from smolmoe.surgery.shared_neurons import SharedNeurons


def _show_upcycled(result: UpcycleResult) -> None:
    from smolmoe.families.engines import by_reason
    from smolmoe.surgery.run import estimate

    plan = result.plan
    layout, moe, dense = plan.layout, plan.parameters, plan.dense_parameters
    where = f"would write {result.out}" if result.dry_run else str(result.out)
    print(
        f"{where}: {plan.target.architecture}, {layout.experts} experts of width {layout.width}, top-{layout.top_k}"
        + (f", shared expert of width {layout.shared_width}" if layout.shared_width else "")
    )
    rows: list[tuple[str, object]] = [
        ("layers", f"{len(layout.moe_layers)} of {plan.spec.layers} become MoE"),
        (
            "parameters",
            f"{units.parameters(moe.total)} total, {units.parameters(moe.active)} active per token "
            f"(dense: {units.parameters(dense.total)})",
        ),
        (
            "without embeddings",
            f"{units.count(moe.total - moe.embedding)} total, {units.count(moe.active - moe.embedding)} active",
        ),
        ("files", f"{plan.config['dtype']}, {units.size(plan.nbytes)}"),
    ]
    if result.dry_run:
        costs = estimate(plan)
        rows.append(
            (
                "needs",
                f"{units.size(costs['disk_bytes'])} disk, {units.size(costs['memory_bytes'])} memory, about "
                f"{units.duration(costs['seconds'])} and the time to verify",
            )
        )
    if result.shared_neurons is not None:
        rows.append(("shared neurons", _shared_neurons(result.shared_neurons, layout.shared_width, plan.spec.ffn_size)))
    rows.append(("claim", f"{plan.claim.kind}. {plan.claim.reason}"))
    if plan.claim.predicted_ffn_error:
        errors = [error for error in plan.claim.predicted_ffn_error if error is not None]
        rows.append(("predicted FFN error", " ".join(f"{error:.3f}" for error in errors)))
    able = [engine for engine, why in plan.runs_in.items() if not why]
    rows.append(("runs in", ", ".join(able)))
    rows += [("not in", f"{', '.join(engines)}: {why}") for why, engines in by_reason(plan.runs_in).items()]
    print_rows(rows)
    for warning in plan.warnings:
        print(f"  warning: {warning}")
    if result.router is not None:
        _show_router(result)
    if result.verification is not None:
        print()
        show_verification(result.verification, "--verify")
    print(f"\n{'Planned' if result.dry_run else 'Done'} in {units.duration(result.seconds)}.")


def _shared_neurons(ranked: SharedNeurons, width: int, ffn: int) -> str:
    held = list(ranked.held.values())
    return (
        f"{width / ffn:.0%} of each FFN, by {ranked.by} on {ranked.tokens:,} tokens, of which they have "
        f"{sum(held) / len(held):.0%} ({min(held):.0%} to {max(held):.0%} in a layer)"
    )


def _show_router(result: UpcycleResult) -> None:
    assert result.router is not None
    layout = result.plan.layout
    names = result.router.domains
    repeat = layout.experts // len(names)
    columns = ("layer", *(f"{e} {names[e // repeat]}" for e in range(layout.experts)))
    rows = [(layer, *(f"{share:.1%}" for share in load)) for layer, load in result.router.load.items()]
    print()
    table(f"Predicted load per expert, before training (balanced: {1 / layout.experts:.1%})", columns, rows)


COMMAND = Command(convert.upcycle, lambda result, given: _show_upcycled(result))
