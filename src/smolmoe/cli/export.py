"""export: an MoE as another class or as a GGUF file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.surgery.export import run

if TYPE_CHECKING:
    from smolmoe.results.gguf import Placement
    from smolmoe.surgery.export.gguf.checks import GgufMeasured
    from smolmoe.surgery.export.gguf.run import GgufExport
    from smolmoe.surgery.export.run import NativeExport


def _show_native(result: NativeExport) -> None:
    print(f"{_where(result)}: {result.architecture}, from a {result.source}")
    print_rows(
        [
            ("parameters", f"{units.parameters(result.parameters)} ({units.size(result.nbytes)})"),
            ("claim", f"{result.claim.kind}. {result.claim.reason}"),
        ]
    )
    if result.verification is not None:
        measured = result.verification
        logits, padding, decoding = measured.logits, measured.padding, measured.decoding
        assert padding is not None  # an export's verification is full
        assert decoding is not None
        print(f"\nVerified on the files as written: against the {result.source}, on {measured.text}")
        print_rows(
            [
                ("logits", f"max |Δ| {logits.max_abs:.2g}, mean |Δ| {logits.mean_abs:.2g} ({logits.max_logit:.3g})"),
                ("KL, top-1", f"{max(logits.kl, 0):.2g} nats, {logits.top1:.2%} the same top-1 token"),
                ("padded left, right", f"max |Δ| {padding.left:.2g}, {padding.right:.2g}"),
                ("with KV cache", f"max |Δ| {decoding.max_abs:.2g} over {decoding.new_tokens} greedy tokens"),
            ]
        )
        print(f"{sum(check.passed for check in measured.checks)} of {len(measured.checks)} checks hold.")
    _show_time(result)


def _show_gguf(result: GgufExport) -> None:
    from smolmoe.surgery.export.gguf.quantise import BLOCK, FALLBACK

    nbytes = "" if result.nbytes is None else f", {units.size(result.nbytes)}"
    print(f"{_where(result)}: GGUF of llama.cpp's {result.architecture}, {result.quant}{nbytes}")
    rows: list[tuple[str, object]] = [("converted through", result.through)]
    rows += [("fixed", fix) for fix in result.mended]
    rows += [
        (f"in {kind}", f"{len(names)} weights: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
        for kind, names in result.other_types.items()
    ]
    if result.odd_rows:
        widths = ", ".join(map(str, result.odd_rows))
        rows.append((f"rows of {widths}", f"not a multiple of {BLOCK}: {FALLBACK}"))
    rows += [("importance", result.importance.said)] if result.importance else []
    rows += [("order", result.order.said)] if result.order else []
    print_rows(rows)
    if result.dry_run:
        _show_time(result)
        return
    if not result.verified:
        print("\nNOT VERIFIED: llama.cpp is not installed. Install it with: pip install 'smolmoe[gguf]'")
    for name, measured in result.measured.items():
        _show_measured(name, measured)
    if result.placement is not None:
        _show_placement(result.placement, result.out)
    _show_time(result)


def _show_placement(found: Placement, out: Path) -> None:
    print(f"\nOn a GPU with {units.size(found.vram)}, with a context of {found.context:,} tokens:")
    print_rows(
        [
            ("weights", f"{units.size(found.weights)}, and {units.size(found.gpu_experts)} of experts"),
            ("KV cache", f"{units.size(found.kv_cache)} in float16"),
            ("overhead", f"{units.size(found.overhead)} assumed for the driver and llama.cpp's buffers"),
            ("total", units.size(found.used)),
        ]
    )
    if not found.fits:
        print("DOES NOT FIT even without experts: reduce the context, or the number of layers with -ngl.")
    print(f"llama-server -m {shlex.quote(str(out))} {found.options}")
    if found.override is not None:
        print(f"The same without -ncmoe: {found.override}")


def _show_measured(name: str, measured: GgufMeasured) -> None:
    print(f"\n{name} in llama.cpp, against transformers in float32: {measured.tokens} tokens of {measured.text}")
    print_rows(
        [
            ("logits", f"max |Δ| {measured.max_abs:.2g} (largest logit {measured.max_logit:.3g})"),
            ("before close calls", f"max |Δ| {measured.sure_max_abs:.2g}, {measured.sure:.2%} of tokens"),
            ("KL, top-1", f"{max(measured.kl, 0):.2g} nats, {measured.top1:.2%} the same top-1 token"),
            ("loss", f"{measured.reference_loss:.4f} transformers, {measured.loss:.4f} llama.cpp"),
            ("flips", f"{measured.flips:.3%} of choices; {measured.close_flips:.3%} at or after a close call"),
            ("token by token", f"max |Δ| {measured.cached_max_abs:.2g} from the whole text at once"),
            ("tokens", "the same" if measured.same_tokens else "NOT the same"),
            ("file, speed", f"{units.size(measured.nbytes)}, {measured.tokens_per_second:,.0f} tokens/s on one thread"),
        ]
    )
    print(f"{sum(check.passed for check in measured.checks)} of {len(measured.checks)} checks hold.")


def _where(result: NativeExport | GgufExport) -> str:
    return f"would write {result.out}" if result.dry_run else str(result.out)


def _show_time(result: NativeExport | GgufExport) -> None:
    print(f"\n{'Planned' if result.dry_run else 'Done'} in {units.duration(result.seconds)}.")


def show_export(result: NativeExport | GgufExport, given: Given) -> None:
    """The written files, and how they measured."""
    from smolmoe.surgery.export.run import NativeExport

    _show_native(result) if isinstance(result, NativeExport) else _show_gguf(result)


COMMAND = Command(run.export, show_export, as_options=("to",), envvars={"llama_cpp": "SMOLMOE_LLAMA_CPP"})
