"""A subset of an MoE's experts as an MoE of the same class: which bytes of which file become which tensor.

subset = subset_of("runs/my-moe", (0, 3))
write_program(subset, "runs/two-experts")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.errors import RequestError
from smolmoe.families import MOE_TARGETS
from smolmoe.surgery.experts.moe_files import MoeFiles, read_moe
from smolmoe.surgery.tensors.program import Block, OutTensor, Read, Role

if TYPE_CHECKING:
    from torch import Tensor

SOURCE = "moe"


class Computed(Mapping[str, "Tensor"]):
    """Values by name, computed on access and not cached."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class Program:
    """Tensors made from an MoE's files, and the matching config.

    Attributes:
        config: config.json of the result.
        tensors: by name on disk, in the order in which they are written.
        sources: what the tensors' blocks read from, by name.
        rows: values that are computed rather than copied, by stream of their block; computed on access.
    """

    config: dict[str, Any]
    tensors: tuple[OutTensor, ...]
    sources: dict[str, Checkpoint]
    rows: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True)
class Subset(Program):
    """A subset of an MoE's experts.

    Attributes:
        files: the whole MoE.
        chosen: MoE layer -> its experts, ascending; expert i of the result is the i-th of them.
    """

    files: MoeFiles = field(kw_only=True)
    chosen: dict[int, tuple[int, ...]] = field(kw_only=True)

    @property
    def shared_bytes(self) -> int:
        """Bytes of everything that belongs to no expert, the chosen router rows included."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor.role != "expert")

    @property
    def expert_bytes(self) -> int:
        """Bytes of the chosen experts, summed over layers."""
        return self.nbytes - self.shared_bytes


def subset_of(source: str | Path | MoeFiles, experts: Sequence[int] | Mapping[int, Sequence[int]]) -> Subset:
    """The program of an MoE of the same class that has only these experts.

    Its function is that of the full MoE restricted to these experts: router rows and selection biases are
    gathered, and K becomes the number of experts if that is smaller.

    Args:
        source: folder, hub id, or the result of `read_moe`.
        experts: the experts to keep, the same in all layers; or one list per MoE layer, all of the same length.

    Raises:
        SourceError: a dense model, or an MoE of an unknown class.
        RequestError: an expert does not exist, no or unequal numbers of experts, or too few for the class.
        CheckpointError: incomplete files.
    """
    files = source if isinstance(source, MoeFiles) else read_moe(source)
    chosen = _chosen(files, experts)
    return Subset(
        _config(files, chosen), _all_tensors(files, chosen), {SOURCE: files.parts}, files=files, chosen=chosen
    )


def permuted(files: MoeFiles, order: Mapping[int, tuple[int, ...]]) -> Program:
    """The same MoE with its experts in another order: router rows, selection biases and FFNs move together.

    Args:
        order: MoE layer -> all its experts. Names of experts, which apply to all layers, are dropped.
    """
    config = {key: value for key, value in files.config.items() if key != "expert_names"}
    return Program(config, _all_tensors(files, order), {SOURCE: files.parts})


def _all_tensors(files: MoeFiles, chosen: Mapping[int, tuple[int, ...]]) -> tuple[OutTensor, ...]:
    return tuple(tensor for name in files.checkpoint.tensors for tensor in _tensors(files, chosen, name))


def _chosen(files: MoeFiles, experts: Sequence[int] | Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    by_layer = experts if isinstance(experts, Mapping) else dict.fromkeys(files.layers, experts)
    if set(by_layer) != set(files.layers):
        raise RequestError(
            "experts must be given for every MoE layer and for no other layer.", field="layers", value=sorted(by_layer)
        )
    chosen = {layer: tuple(sorted(set(by_layer[layer]))) for layer in files.layers}
    counts = {len(kept) for kept in chosen.values()}
    if len(counts) > 1:
        raise RequestError("all layers must keep the same number of experts.", field="experts", value=sorted(counts))
    wrong = [e for kept in chosen.values() for e in kept if not 0 <= e < files.experts]
    if wrong or counts == {0}:
        raise RequestError(
            f"no such expert; there are experts 0 to {files.experts - 1}.", field="experts", value=wrong[:1] or []
        )
    least = MOE_TARGETS[files.kind].min_experts if files.kind in MOE_TARGETS else 1
    if min(counts) < least:
        raise RequestError(
            f"a router of this class ({files.kind}) needs at least {least} experts.",
            field="experts",
            value=min(counts),
            fix="Extract one expert as a dense model, or keep more.",
        )
    return chosen


def _config(files: MoeFiles, chosen: Mapping[int, tuple[int, ...]]) -> dict[str, Any]:
    count = len(next(iter(chosen.values())))
    config = files.resized(count, min(files.top_k, count))
    if count < files.experts:
        config |= without_groups(files)
        refuse_capacity(files)
    if files.names is None:
        return config
    names = {tuple(files.names[e] for e in kept) for kept in chosen.values()}
    if len(names) > 1:
        raise RequestError(
            "the experts have names, which apply to all layers, so all layers must keep the same experts.",
            field="experts",
            value={layer: list(kept) for layer, kept in chosen.items()},
        )
    return config | {"expert_names": list(names.pop())}


def without_groups(files: MoeFiles) -> dict[str, Any]:
    """The settings of a router that chooses among all its experts, if it did so before.

    Raises:
        RequestError: its choice is limited to groups of experts, and these depend on the number of experts.
    """
    groups = int(files.config.get("n_group") or 1)
    if groups == 1:
        return {}
    if int(files.config.get("topk_group") or groups) < groups:
        raise RequestError(
            f"each token may choose from only {files.config['topk_group']} of {groups} groups of experts, and with "
            "a different number of experts the groups would change.",
            field="n_group",
            value=groups,
            fix="Set n_group and topk_group to 1 in config.json if tokens may choose among all experts.",
        )
    return {"n_group": 1, "topk_group": 1}


def refuse_capacity(files: MoeFiles) -> None:
    """Raises RequestError if experts have limited capacity per batch, which depends on E and K."""
    if files.config.get("capacity_factor") is not None:
        raise RequestError(
            "experts have limited capacity per batch, which depends on the number of experts.",
            field="capacity_factor",
            value=files.config["capacity_factor"],
            fix="Set capacity_factor to null in config.json.",
        )


def _tensors(files: MoeFiles, chosen: Mapping[int, tuple[int, ...]], name: str) -> Iterator[OutTensor]:
    """The output tensor for a tensor on disk: kept, renumbered, gathered, or None."""
    if name in files.owner:
        layer, expert = files.owner[name]
        if expert in chosen[layer]:
            yield whole(files, name, renumbered(name, expert, chosen[layer].index(expert)), role="expert")
        return
    if name not in files.stacks:
        yield whole(files, name)
        return
    layer = files.stacks[name]
    info = files.parts.tensors[name]
    row = (1, *info.shape[1:])
    blocks = tuple(Block(row, (Read(SOURCE, name),), span=(e, e + 1)) for e in chosen[layer])
    shape = files.stored(name, (len(blocks), *info.shape[1:]))
    is_router = name in (files.layers[layer].router, files.layers[layer].selection_bias)
    dtype = files.checkpoint.dtype(name)
    yield OutTensor(name, name, (), shape, dtype, "router" if is_router else "expert", blocks)


def whole(files: MoeFiles, name: str, out: str | None = None, role: Role = "kept") -> OutTensor:
    """A tensor of an MoE, unchanged, by its name in `files.parts`, under a new name."""
    info = files.parts.tensors[name]
    block = Block(info.shape, (Read(SOURCE, name),))
    shape = files.stored(name, info.shape) if name in files.stacks else info.shape
    return OutTensor(out or name, out or name, (), shape, files.parts.dtype(name), role, (block,))


def renumbered(name: str, old: int, new: int) -> str:
    """An expert's tensor with a new expert index: "...experts.7.w1.weight" -> "...experts.0.w1.weight"."""
    before, after = name.rsplit(f"experts.{old}.", 1)
    return f"{before}experts.{new}.{after}"
