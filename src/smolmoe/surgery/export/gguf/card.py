"""The model card of a GGUF file: how it was measured, and how to run it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.core import units
from smolmoe.hub.card import fence, table

if TYPE_CHECKING:
    from smolmoe.surgery.export.gguf.run import GgufExport

HEAD = "---\nlibrary_name: gguf\ntags: [smolmoe, gguf, moe]\n---\n"


def is_card(path: Path) -> bool:
    """Whether a file is a card that `card` made."""
    return path.is_file() and path.read_bytes().startswith(HEAD.encode())


def card(result: GgufExport, source: str) -> str:
    """The card as Markdown.

    Args:
        source: name of the MoE.
    """
    facts = [f"Weights: {result.quant}, {units.size(result.nbytes or 0)}."]
    facts += [f"Importance matrix: {result.importance.said}."] if result.importance else []
    facts += [f"Order of experts: {result.order.said}."] if result.order else []
    parts = [
        f"{HEAD}\n# {result.out.stem}",
        f"The Mixture-of-Experts `{source}` for llama.cpp (`{result.architecture}`), by `smolmoe export`.",
        "\n".join(f"- {fact}" for fact in facts),
        _measured(result),
        f"## Use\n\n{fence(_command(result), 'sh')}",
        _memory(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _measured(result: GgufExport) -> str:
    if not result.measured:
        return "The file was not measured."
    rows = [
        (name, f"{max(one.kl, 0):.2g}", f"{one.top1:.2%}", f"{one.loss:.4f}", f"{one.flips:.2%}")
        for name, one in result.measured.items()
    ]
    head = ("weights", "KL, nats", "top-1 agreement", "loss, nats per token", "different experts")
    first = next(iter(result.measured.values()))
    compared = (
        f"Run by llama.cpp and compared with transformers in float32 (loss {first.reference_loss:.4f}), on "
        f"{first.tokens} tokens of {first.text}."
    )
    return f"## Measurement\n\n{compared}\n\n{table(head, rows)}"


def _command(result: GgufExport) -> str:
    options = "" if result.placement is None else f" {result.placement.options}"
    return f"llama-server -m {shlex.quote(result.out.name)}{options}"


def _memory(result: GgufExport) -> str:
    found = result.placement
    if found is None:
        return ""
    said = (
        f"On a GPU with {units.size(found.vram)} this needs {units.size(found.used)}: {units.size(found.weights)} of "
        f"weights, {units.size(found.gpu_experts)} of {units.size(found.experts)} of experts, "
        f"{units.size(found.kv_cache)} of KV cache, and an assumed {units.size(found.overhead)} for the driver and "
        "buffers."
    )
    said += "" if found.fits else " It does not fit."
    return said if found.override is None else f"{said} Without `-ncmoe`:\n\n{fence(found.override, 'sh')}"
