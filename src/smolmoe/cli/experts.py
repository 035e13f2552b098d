"""extract, prune, merge-experts, add-expert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, progress, quiet_libraries, table
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.surgery.experts.job import ExpertResult
    from smolmoe.surgery.experts.measure import Losses, Measured

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of an MoE.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")]
Data = Annotated[
    Path | None,
    typer.Option(help='Text (.jsonl with {"text", "domain"}, .txt, .parquet): half chooses, half measures the loss.'),
]
Device = Annotated[str, typer.Option(help="Where the models run that are measured.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Plan and check; run no model and write nothing.")]


def add_to(app: typer.Typer) -> None:
    app.command()(extract)
    app.command()(prune)
    app.command(name="merge-experts")(merge_experts)
    app.command(name="add-expert")(add_expert)


def extract(
    model: Model,
    out: Out,
    expert: Annotated[list[str], typer.Option(metavar="NAME|INDEX", help="An expert; repeat it for a smaller MoE.")],
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take one expert out as a dense model, or several as a smaller MoE, and verify the written files."""
    quiet_libraries()
    from smolmoe.surgery.experts.run import extract as run

    with progress(show=not as_json) as report:
        result = run(model, out, expert, device=device, overwrite=overwrite, dry_run=dry_run, report=report)
    _show(result, as_json=as_json)


def prune(
    model: Model,
    out: Out,
    keep: Annotated[list[str] | None, typer.Option(metavar="NAME|INDEX", help="An expert to keep; repeat it.")] = None,
    experts: Annotated[int | None, typer.Option(help="Keep this many: those that --data uses most.")] = None,
    data: Data = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fewer experts: those named, or those used most, with the held-out loss before and after."""
    quiet_libraries()
    from smolmoe.surgery.experts.run import prune as run

    with progress(show=not as_json) as report:
        result = run(
            model,
            out,
            keep=keep or None,
            experts=experts,
            data=data,
            device=device,
            overwrite=overwrite,
            dry_run=dry_run,
            report=report,
        )
    _show(result, as_json=as_json)


def merge_experts(
    model: Model,
    out: Out,
    groups: Annotated[
        list[str] | None, typer.Option(metavar="A,B...", help="Experts to average into one; repeat it.")
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="Leave this many: the most used on --data, joined by those most like them.")
    ] = None,
    data: Data = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fewer experts: groups of them averaged, weighted by use where there are data, with the loss before and after."""
    quiet_libraries()
    from smolmoe.surgery.experts.run import merge_experts as run

    with progress(show=not as_json) as report:
        result = run(
            model,
            out,
            groups=[[part.strip() for part in group.split(",")] for group in groups] if groups else None,
            experts=experts,
            data=data,
            device=device,
            overwrite=overwrite,
            dry_run=dry_run,
            report=report,
        )
    _show(result, as_json=as_json)


def add_expert(
    model: Model,
    out: Out,
    copy_of: Annotated[
        str | None, typer.Option("--from", metavar="NAME|INDEX", help="Copy this expert.  [default: 0]")
    ] = None,
    dense: Annotated[str | None, typer.Option(help="Take the FFNs of this dense model instead.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new expert; free where not given.")] = None,
    device: Device = "cpu",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """One more expert, keeping the function wherever some class of MoE can."""
    quiet_libraries()
    from smolmoe.surgery.experts.run import add_expert as run

    with progress(show=not as_json) as report:
        result = run(
            model,
            out,
            copy_of=copy_of,
            dense=dense,
            name=name,
            device=device,
            overwrite=overwrite,
            dry_run=dry_run,
            report=report,
        )
    _show(result, as_json=as_json)


def _show(result: ExpertResult, *, as_json: bool) -> None:
    if as_json:
        print_json(result.to_json())
        return
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
        ("KL, top-1", f"{measured.kl:.2g} nats, {measured.top1:.2%} the same favourite"),
        ("loss", f"{measured.reference_loss:.4f} of that, {measured.loss:.4f} of what was written"),
    ]
    if measured.other_experts is not None:
        rows.append(("other experts", f"max |Δ| {measured.other_experts:.2g}: what choosing others would change"))
    print_rows(rows)
    good = sum(check.passed for check in measured.checks)
    print(f"{good} of {len(measured.checks)} checks hold.")


def _show_losses(losses: Losses) -> None:
    found = losses.to_json()
    low, high = found["interval"]
    domains = losses.before.by_domain
    print()
    table(
        f"Held-out loss, nats a token ({found['before']['tokens']:,} tokens)",
        ("", "all", *domains),
        [
            ("before", f"{losses.before.loss:.4f}", *(f"{loss:.4f}" for loss in domains.values())),
            ("after", f"{losses.after.loss:.4f}", *(f"{loss:.4f}" for loss in losses.after.by_domain.values())),
        ],
    )
    print(f"Difference {found['delta']:+.4f} [{low:+.4f}, {high:+.4f}] (95%, over documents).")
