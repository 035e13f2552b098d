"""inspect, upcycle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.output import Json, named_paths, print_json, print_rows, progress, quiet_libraries, table
from smolmoe.cli.proofs import show_verification
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.surgery.inspection import Inspection
    from smolmoe.surgery.run import UpcycleResult


def add_to(app: typer.Typer) -> None:
    app.command()(inspect)
    app.command()(upcycle)


def inspect(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Local folder or hub id of a dense model.")],
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a model is and what each MoE class can make of it."""
    quiet_libraries()
    from smolmoe.surgery.inspection import inspect as run

    report = run(source, revision=revision)
    if as_json:
        print_json(report.to_json())
    else:
        _show_inspection(report)


def _show_inspection(report: Inspection) -> None:
    from smolmoe.surgery.inspection import EXACT_IN

    p = report.parameters
    sizes = report.sizes
    print(f"{report.source}: {report.architecture}")
    print_rows(
        [
            ("family", report.family),
            ("sizes", ", ".join(f"{name} {value}" for name, value in sizes.items())),
            ("FFN", report.ffn + (", with biases" if report.mlp_bias else ", no biases")),
            ("attention biases", report.attention_bias),
            ("q/k norm", report.qk_norm),
            ("sliding window", report.sliding_window),
            ("rope", ", ".join(f"{k} {v}" for k, v in report.rope.items()) or "none"),
            ("embeddings", "tied to the output head" if report.tied else "not tied"),
            ("files", f"{', '.join(report.dtypes)}, {units.size(report.nbytes)}"),
            ("parameters", f"{p.total:,} total and active; {p.total - p.embedding:,} without embeddings"),
            *(("warning", warning) for warning in report.warnings),
        ]
    )
    yes = {True: "exact", False: "-"}
    print()
    table(
        "What it can become",
        ("target", "routed only", "with a shared expert", "layers left dense", "runs in"),
        [
            (t.target, yes[t.routed], yes[t.shared], t.dense_layers, "; ".join(f"{e} {n}" for e, n in t.runs.items()))
            for t in report.targets
        ],
    )
    print(f"exact: {EXACT_IN}.")
    for t in report.targets:
        if t.why_not:
            print(f"{t.target}: {'; '.join(t.why_not)}. Nearest: {t.nearest}.")


def upcycle(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Local folder or hub id of the dense model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    experts: Annotated[int | None, typer.Option(help="Routed experts E.  [default: 8]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Experts per token K.  [default: 2]")] = None,
    granularity: Annotated[
        int | None, typer.Option(help="Split the FFN into G expert shards, chosen in whole groups.  [default: 1]")
    ] = None,
    shared: Annotated[
        str | None, typer.Option(help="none, full, residual, or a width in neurons.  [default: none]")
    ] = None,
    diversify: Annotated[
        str | None, typer.Option(help="none, noise or drop (Drop-Upcycling).  [default: none]")
    ] = None,
    noise_std: Annotated[float | None, typer.Option(help="noise: standard deviation.  [default: 0.02]")] = None,
    drop_ratio: Annotated[float | None, typer.Option(help="drop: share of neurons drawn anew.  [default: 0.5]")] = None,
    drop_independent: Annotated[
        bool, typer.Option("--drop-independent", help="drop: choose neurons per matrix.")
    ] = False,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A specialist to merge; repeat it.")
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Merge: the rest is the average of the specialists, or the base's.  [default: average]"),
    ] = None,
    router: Annotated[str | None, typer.Option(help="random (std 0.02), zero, or domains.  [default: random]")] = None,
    router_data: Annotated[Path | None, typer.Option(help='domains: JSONL with {"text", "domain"}.')] = None,
    router_centroids: Annotated[
        str | None, typer.Option(help="domains: mean of each, or kmeans over all tokens.  [default: mean]")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to convert: all, 2-10, every:2, 0,3,5.  [default: all]")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="auto, generic, or a native class (see `smolmoe inspect`).  [default: auto]"),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.  [default: the source's]")] = None,
    device: Annotated[
        str | None, typer.Option(help="For router initialisation and verification.  [default: cpu]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw.  [default: 0]")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the source.")] = None,
    max_shard_size: Annotated[str | None, typer.Option(help="Largest file, e.g. 500MB.  [default: 5GB]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, check and predict; write nothing.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not reload and measure what was written.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a dense model into a Mixture-of-Experts and verify the written files."""
    quiet_libraries()
    from smolmoe.surgery.run import upcycle as run

    given: dict[str, Any] = {
        "experts": experts,
        "top_k": top_k,
        "granularity": granularity,
        "shared": _shared(shared),
        "diversify": diversify,
        "noise_std": noise_std,
        "drop_ratio": drop_ratio,
        "drop_independent": drop_independent or None,
        "expert": named_paths("expert", expert) or None,
        "attention": attention,
        "router": router,
        "router_data": router_data,
        "router_centroids": router_centroids,
        "layers": layers,
        "target": target,
        "dtype": dtype,
        "device": device,
        "seed": seed,
        "revision": revision,
        "max_shard_size": max_shard_size,
        "overwrite": overwrite or None,
        "verify": False if no_verify else None,
    }
    options = {name: value for name, value in given.items() if value is not None}
    with progress(show=not as_json) as report:
        result = run(source, out, dry_run=dry_run, report=report, **options)
    if as_json:
        print_json(result.to_json())
    else:
        _show_upcycled(result)


def _shared(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _show_upcycled(result: UpcycleResult) -> None:
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
    rows.append(("claim", f"{plan.claim.kind}. {plan.claim.reason}"))
    if plan.claim.predicted_ffn_error:
        errors = [error for error in plan.claim.predicted_ffn_error if error is not None]
        rows.append(("predicted FFN error", " ".join(f"{error:.3f}" for error in errors)))
    print_rows(rows)
    for warning in plan.warnings:
        print(f"  warning: {warning}")
    if result.router is not None:
        _show_router(result)
    if result.verification is not None:
        print()
        show_verification(result.verification)
    print(f"\n{'Planned' if result.dry_run else 'Done'} in {units.duration(result.seconds)}.")


def _show_router(result: UpcycleResult) -> None:
    assert result.router is not None
    layout = result.plan.layout
    names = result.router.domains
    repeat = layout.experts // len(names)
    columns = ("layer", *(f"{e} {names[e // repeat]}" for e in range(layout.experts)))
    rows = [(layer, *(f"{share:.1%}" for share in load)) for layer, load in result.router.load.items()]
    print()
    table(f"Predicted load per expert, before training (balanced: {1 / layout.experts:.1%})", columns, rows)
