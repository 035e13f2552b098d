"""An MoE with only some experts in memory, read by byte ranges of its files.

It equals the complete model with routers that can choose only these experts (see `restrict.only_experts`); tensors of
other experts are never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from smolmoe.core.checkpoint import FLOAT_DTYPES, Checkpoint, open_checkpoint
from smolmoe.errors import CheckpointError, SourceError
from smolmoe.inference.offload import experts_modules
from smolmoe.moe.gating import RouterOutput, gate_spec, route, router_weight, selection_bias
from smolmoe.moe.loading import Skeleton
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import find_layers

_NUMBER = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True)
class TensorBytes:
    """Bytes of tensors.

    Attributes:
        total: in the files.
        shared: of those, outside routed experts: embeddings, attention, norms, routers, shared experts.
        read: from the files, repeated reads included.
        held: in memory now.
    """

    total: int
    shared: int
    read: int
    held: int


@dataclass(frozen=True)
class CountingCheckpoint(Checkpoint):
    """A checkpoint that records the bytes it reads, by tensor."""

    reads: list[tuple[str, int]] = field(default_factory=list)

    def read(self, name: str, rows: tuple[int, int] | None = None, *, finite: bool = True) -> torch.Tensor:
        tensor = super().read(name, rows, finite=finite)
        self.reads.append((name, tensor.nbytes))
        return tensor


class SelectiveModel:
    """A checkpoint folder of an MoE as a transformers model that is loaded by layers and by experts.

        selective = SelectiveModel(folder)
        selective.load_shared()
        selective.load_experts({layer: (2,) for layer in selective.layers})
        selective.model(input_ids).logits  # [B, S, V]

    Args:
        folder: of any MoE of transformers with stacked experts in memory, in any format on disk, and routers that
            `gating.gate_spec` knows. Parameters have the most frequent dtype of the files.

    Attributes:
        model: the transformers model, on the CPU.
        checkpoint: its files, and the record of reads.
        experts: E.
        layers: the MoE layers.
        chosen: MoE layer -> its loaded experts.

    Raises:
        SourceError: no such model, or a dense one.
        CheckpointError: incomplete files.
        TargetError: experts or routers of another kind.
    """

    def __init__(self, folder: str | Path):
        opened = open_checkpoint(folder, field="model")
        self.checkpoint = CountingCheckpoint(opened.folder, opened.tensors, opened.revision)
        self._skeleton = _Skeleton(self.checkpoint)
        self.model = self._skeleton.model
        self.model.generation_config = generation_config(self._skeleton.folder, self._skeleton.config)
        self.folder, self.config = self._skeleton.folder, self._skeleton.config
        self.routers: dict[int, Any] = dict(find_routers(self.model))
        if not self.routers:
            raise SourceError("is dense: it has no experts.", field="model", value=str(folder), fix="Use an MoE.")
        self.layers = tuple(self.routers)
        self.experts = gate_spec(self.routers[self.layers[0]]).experts
        self.chosen: dict[int, tuple[int, ...]] = {}
        self._modules = experts_modules(self.model)
        self._path, self.decoder = find_layers(self.model)
        self._groups, self._of_experts = self._sorted_names()
        self._loaded: set[Any] = set()
        for layer, router in self.routers.items():
            router.forward = partial(self.restricted, layer)

    def load_shared(self) -> None:
        """Reads everything outside routed experts that was not read yet."""
        for group in self._groups:
            self.load_group(group)

    def load_group(self, group: int | str) -> None:
        """Reads the shared tensors of a decoder layer, of the "stem" (embeddings, final norm) or the "head"."""
        if group in self._loaded:
            return
        self._skeleton.fill(self._groups[group])
        self._loaded.add(group)
        if group == "stem":
            self.model.tie_weights(missing_keys=set(self._skeleton.missing), recompute_mapping=False)
        self.model.requires_grad_(False)

    def load_experts(self, experts: Mapping[int, Sequence[int]]) -> None:
        """Replaces loaded experts: MoE layer -> the experts to load, ascending."""
        for layer, wanted in experts.items():
            if self.chosen.get(layer) == tuple(wanted):
                continue
            module = self._modules[layer]
            self._drop_experts(layer, len(wanted))
            self._skeleton.fill_from(self._sources(layer, wanted))
            module.num_experts = len(wanted)
            module.requires_grad_(False)
            self.chosen[layer] = tuple(wanted)

    def release(self, layer: int) -> None:
        """Releases the memory of a decoder layer, its experts included."""
        self.decoder[layer].to("meta")
        self._loaded.discard(layer)
        self.chosen.pop(layer, None)

    def bytes(self) -> TensorBytes:
        """Bytes read so far, and bytes in memory."""
        sizes = {name: info.nbytes for name, info in self.checkpoint.tensors.items()}
        experts = sum(sizes[name] for names in self._of_experts.values() for name in names)
        read = sum(nbytes for _, nbytes in self.checkpoint.reads)
        held = {
            id(tensor): tensor.nbytes for tensor in self.model.state_dict(keep_vars=True).values() if _is_real(tensor)
        }
        return TensorBytes(sum(sizes.values()), sum(sizes.values()) - experts, read, sum(held.values()))

    def restricted(self, layer: int, x: torch.Tensor, bias: torch.Tensor | None = None) -> RouterOutput:
        """The decision of the layer's router among the loaded experts; indices count these from 0."""
        router, chosen = self.routers[layer], self.chosen[layer]
        available = torch.zeros(self.experts, dtype=torch.bool, device=x.device)
        available[list(chosen)] = True
        bias = selection_bias(router) if bias is None else bias  # LFM2's block passes it
        weight = router_weight(router)
        logits, gates, indices = route(x, weight, bias, gate_spec(router), available=available)
        # With fewer than K loaded experts the rest of K have gate 0: their indices do not matter.
        place = available.cumsum(0).sub(1).masked_fill(~available, 0)
        return logits, gates, place[indices]

    def _sorted_names(self) -> tuple[dict[int | str, list[str]], dict[int, list[str]]]:
        """Names on disk of the shared tensors, by group of loading, and of the routed experts, by layer."""
        paths = {id(module): path for path, module in self.model.named_modules()}
        experts = {f"{paths[id(module)]}.": layer for layer, module in self._modules.items()}
        groups: dict[int | str, list[str]] = {"stem": [], **{i: [] for i in range(len(self.decoder))}, "head": []}
        of_experts: dict[int, list[str]] = {layer: [] for layer in self.layers}
        head = self._head()
        for disk, name in self._skeleton.names.items():
            layer = experts.get(name.rpartition(".")[0] + ".")
            if layer is not None:
                of_experts[layer].append(disk)
            elif name.startswith(f"{self._path}."):
                groups[int(name.removeprefix(f"{self._path}.").split(".")[0])].append(disk)
            else:
                groups["head" if name == head else "stem"].append(disk)
        return groups, of_experts

    def _head(self) -> str | None:
        """The parameter that only the logits need, if there is one."""
        head = self.model.get_output_embeddings()
        names = [
            name for name, parameter in self.model.named_parameters() if head is not None and parameter is head.weight
        ]
        # A tied parameter is needed with the other one, even if the files have it twice.
        tied = {*self.model.all_tied_weights_keys, *self.model.all_tied_weights_keys.values()}
        return next((name for name in names if name not in tied), None)

    def _drop_experts(self, layer: int, count: int) -> None:
        """Replaces a layer's experts by `count` experts on the meta device."""
        module = self._modules[layer]
        for name, parameter in list(module.named_parameters(recurse=False)):
            empty = torch.empty(count, *parameter.shape[1:], dtype=parameter.dtype, device="meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=False)

    def _sources(self, layer: int, wanted: Sequence[int]) -> dict[str, _Rows]:
        """The tensors to read, under the names of a checkpoint with only these experts."""
        sources = {}
        for disk in self._of_experts[layer]:
            number = _NUMBER.search(disk)
            if number is None:
                sources[disk] = _Rows(self.checkpoint, disk, wanted)
            elif int(number[1]) in wanted:
                place = list(wanted).index(int(number[1]))
                sources[f"{disk[: number.start(1)]}{place}{disk[number.end(1) :]}"] = _Rows(self.checkpoint, disk, None)
        return sources


def generation_config(folder: Path, config: Any) -> Any:
    """The folder's generation config, as `from_pretrained` reads it."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config)


class _Skeleton(Skeleton):
    """Reads through a counting checkpoint, and can load tensors under other names."""

    def __init__(self, checkpoint: Checkpoint):
        super().__init__(checkpoint.folder, dtype=_stored_dtype(checkpoint))
        self._checkpoint = checkpoint

    def fill_from(self, sources: Mapping[str, Any]) -> None:
        info = self._convert(dict(sources), "cpu")
        wrong = [str(entry) for entry in (*info.mismatched_keys, *info.conversion_errors)]
        if wrong:
            raise CheckpointError("experts cannot be assembled.", field="tensor", value=wrong[0])


class _Rows:
    """A lazily read tensor for transformers: indexing reads these rows of it, or all."""

    def __init__(self, checkpoint: Checkpoint, name: str, rows: Sequence[int] | None):
        self._checkpoint, self._name, self._wanted = checkpoint, name, rows

    def __getitem__(self, _: Any) -> torch.Tensor:
        if self._wanted is None:
            return self._checkpoint.read(self._name)
        return torch.cat([self._checkpoint.read(self._name, (row, row + 1)) for row in self._wanted])


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return getattr(torch, FLOAT_DTYPES.get(max(sizes, key=lambda code: sizes[code]), "float32"))


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "meta"
