"""An equivalent MoE that llama.cpp can compute, where changing a few weights is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.core.json_text import read_object
from smolmoe.surgery.experts.moe_files import MoeFiles
from smolmoe.surgery.experts.subset import SOURCE, Computed, Program, whole
from smolmoe.surgery.tensors.program import Block, OutTensor, Read

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# So small that sigmoid(w x) is 1/2 in every float, and large enough that w x is not 0 in float32.
TINY = 1e-20


def zero_gates(files: MoeFiles) -> list[str]:
    """Gates of shared experts that are exactly zero, by name on disk."""
    gates = [layer.shared_gate for layer in files.layers.values() if layer.shared_gate is not None]
    return [gate for gate in gates if not bool(files.parts.read(gate).any())]


def adapted(files: MoeFiles, *, own_head: bool, tiny_gates: bool) -> tuple[Program, list[str]] | None:
    """The program of the adapted MoE and the list of changes; None if no change is needed.

    Args:
        own_head: tied embeddings are written twice, as input embedding and as output head.
        tiny_gates: a zero gate on the shared expert becomes 1e-20, which gives the same 1/2 and avoids division by
            zero.
    """
    said = list(_config_differences(files))
    config, tensors = dict(files.config), [whole(files, name) for name in files.checkpoint.tensors]
    makers: dict[str, Callable[[], Tensor]] = {}
    if own_head and HEAD not in files.checkpoint.tensors:
        config |= {"tie_word_embeddings": False}
        embedding = files.parts.tensors[EMBEDDING]
        block = Block(embedding.shape, (Read(SOURCE, EMBEDDING),))
        tensors.append(OutTensor(HEAD, HEAD, (), embedding.shape, files.parts.dtype(EMBEDDING), "kept", (block,)))
        said.append("the output head, tied to the embedding, is written as a separate tensor, which this class needs")
    gates = zero_gates(files) if tiny_gates else []
    if gates:
        makers |= {gate: partial(_tiny, files.parts, gate) for gate in gates}
        tensors = list(_with_rows(tensors, set(gates)))
        said.append(
            f"the shared expert's gate, zero in {len(gates)} layers, is written as {TINY:g}: llama.cpp divides "
            "by it, and both values give one half"
        )
    return (Program(config, tuple(tensors), {SOURCE: files.parts}, Computed(makers)), said) if said else None


def _config_differences(files: MoeFiles) -> Iterator[str]:
    """Corrections that `read_moe` made to the config and that the converter needs on disk."""
    raw = read_object(files.folder / "config.json")
    if not raw.get("architectures"):
        yield "config.json did not name the class; it does now"
    if files.config.get("tie_word_embeddings") is False and raw.get("tie_word_embeddings"):
        yield "config.json tied an output head that has separate weights in the files; it no longer does"


def _with_rows(tensors: list[OutTensor], names: set[str]) -> Iterator[OutTensor]:
    for tensor in tensors:
        if tensor.name in names:
            block = Block(tensor.shape, fill="rows", stream=tensor.name)
            yield replace(tensor, dtype="float32", blocks=(block,))
        else:
            yield tensor


def _tiny(parts: Checkpoint, name: str) -> Tensor:
    import torch

    return torch.full(parts.tensors[name].shape, TINY)
