"""distill: a teacher's targets, for `distill` in a training recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import BestDevice, Json, print_json, print_rows, progress, quiet_libraries
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.results.distillation import CacheForecast, CacheResult

distill_app = typer.Typer(
    help="Learn from a teacher: what it says of each token, kept on disk.", add_completion=False, rich_markup_mode=None
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(distill_app, name="distill")


@distill_app.callback()
def distill() -> None:
    """Learn from a teacher: what it says of each token, kept on disk."""


@distill_app.command()
def cache(
    teacher: Annotated[str, typer.Option(help="Folder or hub id of a causal language model, with its tokenizer.")],
    data: Annotated[
        list[str],
        typer.Option(help="File, folder, preset or hub data set, repeated; or a training recipe (.yaml): its text."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the cache.")],
    top_k: Annotated[
        int | None, typer.Option(help="Keep the k largest probabilities and the mass left over.  [default: 20]")
    ] = None,
    sampled: Annotated[
        int | None, typer.Option(metavar="N", help="Keep N draws of each token instead: unbiased, and smaller.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it, the student's in training too.")] = 1.0,
    device: BestDevice = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens that the teacher reads at once.")] = 8192,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a cache that was begun.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a cache that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would be; write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Keep what a teacher says of every token of a text. Under `accelerate launch` the work is shared."""
    quiet_libraries()
    from smolmoe.distillation.run import cache_teacher, forecast_cache

    with progress(not as_json) as report:
        if dry_run:
            found = forecast_cache(
                teacher,
                data,
                out,
                top_k=top_k,
                sampled=sampled,
                temperature=temperature,
                batch_tokens=batch_tokens,
                report=report,
            )
        else:
            result = cache_teacher(
                teacher,
                data,
                out,
                top_k=top_k,
                sampled=sampled,
                temperature=temperature,
                device=device,
                batch_tokens=batch_tokens,
                resume=resume,
                overwrite=overwrite,
                report=report,
            )
    if as_json:
        print_json(asdict(found if dry_run else result))
    elif dry_run:
        _show_forecast(found)
    else:
        _show(result)


def _show_forecast(found: CacheForecast) -> None:
    print(f"would write {found.out}")
    print_rows(
        [
            ("text", f"{units.tokens(found.tokens)} tokens in {found.documents:,} documents"),
            ("windows", f"of {found.window} tokens; {found.left_out:,} documents are longer"),
            (
                "size",
                f"at most {found.bytes_per_token:g} bytes a token, {units.size(found.bytes)} in {found.shards} shards",
            ),
        ]
    )


def _show(result: CacheResult) -> None:
    kept = f"the {result.size} largest" if result.kind == "top_k" else f"{result.size} draws"
    print(f"{result.out}: {kept} of each token, temperature {result.temperature:g}")
    rows = [
        ("text", f"{units.tokens(result.tokens)} tokens in {result.documents:,} documents"),
        ("size", f"{result.bytes_per_token:.1f} bytes a token, {units.size(result.bytes)} in {result.shards} shards"),
    ]
    if result.left_over is not None:
        rows.append(("left over", f"{result.left_over:.2%} of the probability is in the tail"))
    else:
        rows.append(("entries", f"{result.entries:.1f} different tokens of {result.size} draws"))
    if result.entropy is not None:
        rows.append(("entropy", f"{result.entropy:.3f} nats a token"))
    rows.append(("device", result.device))
    rows.append(
        ("time", units.duration(result.seconds) + (f", {result.reused} shards were there" * bool(result.reused)))
    )
    print_rows(rows)
