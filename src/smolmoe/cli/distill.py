"""distill cache: a teacher's targets for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.results.distillation import CacheForecast, CacheResult


def _show_forecast(found: CacheForecast, given: Given) -> None:
    print(f"would write {found.out}")
    print_rows(
        [
            ("text", f"{units.tokens(found.tokens)} tokens in {found.documents:,} documents"),
            ("windows", f"of {found.window} tokens; {found.left_out:,} documents are longer"),
            (
                "size",
                f"at most {found.bytes_per_token:g} bytes per token, "
                f"{units.size(found.bytes)} in {found.shards} shards",
            ),
        ]
    )


def _show(result: CacheResult, given: Given) -> None:
    kept = f"the {result.size} largest" if result.kind == "top_k" else f"{result.size} samples"
    print(f"{result.out}: {kept} per token, temperature {result.temperature:g}")
    rows = [
        ("text", f"{units.tokens(result.tokens)} tokens in {result.documents:,} documents"),
        ("size", f"{result.bytes_per_token:.1f} bytes per token, {units.size(result.bytes)} in {result.shards} shards"),
    ]
    if result.left_over is not None:
        rows.append(("tail", f"{result.left_over:.2%} of the probability"))
    else:
        rows.append(("entries", f"{result.entries:.1f} different tokens of {result.size} samples"))
    if result.entropy is not None:
        rows.append(("entropy", f"{result.entropy:.3f} nats per token"))
    rows.append(("device", result.device))
    rows.append(
        ("time", units.duration(result.seconds) + (f", {result.reused} shards existed already" * bool(result.reused)))
    )
    print_rows(rows)


COMMAND = Command(train.distill, _show, _show_forecast, as_options=("teacher", "data", "out"))
