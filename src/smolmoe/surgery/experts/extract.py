"""Extract one expert of an MoE as the FFN of a dense model, together with the shared expert.

With a single available expert its gate is 1, so it has full weight; the shared expert is joined to it in
one wider FFN: rows of gate and up are stacked, columns of down are placed side by side. Constant factors
(a scaled gate, a shared expert behind a gate of zeros) go into down. A layer narrower than the widest is padded with
zero neurons, which contribute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.errors import RequestError
from smolmoe.families.fit import GENERIC
from smolmoe.families.forms import DenseForm
from smolmoe.surgery.experts.dense_config import dense_form
from smolmoe.surgery.experts.moe_files import Ffn, MoeFiles
from smolmoe.surgery.experts.subset import SOURCE, Computed, Program, refuse_capacity, whole
from smolmoe.surgery.tensors.program import Block, OutTensor, Read

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Weights of a layer's routed experts and its shared expert: constants of its gates, or their means."""

    routed: float = 1.0
    shared: float = 1.0


def constant_factors(files: MoeFiles) -> dict[int, Factors] | None:
    """By layer, the gates when only the extracted experts are available; None if they depend on the token.

    They do if the shared expert's gate has been trained, and under sigmoid scores that are not renormalised.
    """
    if files.sigmoid and not files.renormalises:
        return None
    routed = files.gate_scale
    found = {}
    for index, layer in files.layers.items():
        if layer.shared_gate is not None and files.parts.read(layer.shared_gate).any():
            return None
        found[index] = Factors(routed, files.shared_scale * (0.5 if layer.shared_gate is not None else 1.0))
    return found


def dense_of(files: MoeFiles, experts: Sequence[int], factors: Mapping[int, Factors]) -> Program:
    """The program of a dense model with the FFN of one expert, or of the experts of one group with equal gates.

    Args:
        files: the MoE.
        experts: the expert; or the G shards of one group, which together are one FFN.
        factors: by MoE layer.

    Raises:
        TargetError: no dense class computes the rest of the model.
        RequestError: the layers' widths differ but the class derives them, or experts have limited capacity.
    """
    refuse_capacity(files)
    form = dense_form(files)
    extraction = _Extraction(files, form, tuple(experts), factors)
    tensors = tuple(extraction.tensors())
    config = form.config | ({form.width_key: extraction.width} if form.width_key else {})
    return Program(config, tensors, {SOURCE: files.parts}, Computed(extraction.makers))


@dataclass(frozen=True)
class _Part:
    """Neurons of the new FFN: those of an FFN of the MoE, weighted by `scale`."""

    ffn: Ffn
    scale: float


@dataclass
class _Extraction:
    files: MoeFiles
    form: DenseForm
    experts: tuple[int, ...]
    factors: Mapping[int, Factors]
    makers: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = {self._width(self.parts(layer)) for layer in self.files.layers} | set(self._dense_widths())
        self.width = max(widths)
        if self.form.width_key is None and len(widths | {4 * self._hidden()}) > 1:
            raise RequestError(
                f"the dense class derives its FFN width, but these layers have widths {sorted(widths)}.",
                field="model_type",
                value=self.form.config["model_type"],
                fix="Extract two or more experts; the result is then still an MoE.",
            )

    @property
    def _source(self) -> Checkpoint:
        return self.files.parts

    def parts(self, layer: int) -> list[_Part]:
        """The parts of a layer's FFN: the experts, then the shared expert."""
        found, factors = self.files.layers[layer], self.factors[layer]
        routed = [_Part(found.experts[e], factors.routed / len(self.experts)) for e in self.experts]
        return [*routed, _Part(found.shared, factors.shared)] if found.shared else routed

    def tensors(self) -> Iterator[OutTensor]:
        """The result's tensors, in the order of the MoE's."""
        for part in self.files.in_order():
            if isinstance(part, str):
                yield from self._kept(part)
            else:
                yield from self._zero_biases(part)
                yield from self._ffn(part)

    # -- outside the MoE -----------------------------------------------------------------------------------------

    def _kept(self, name: str) -> Iterator[OutTensor]:
        out = name.removeprefix("lm.") if self.files.kind == GENERIC else name
        index = self._index(out)
        if out.endswith(self.form.dropped):
            return
        if index is not None and index >= self._layers():
            return  # an extra multi-token prediction layer; the class does not load it either
        tensor = whole(self.files, name, out)
        yield self._padded(tensor) if index is not None and self._is_ffn(out) else tensor
        if index is not None and index not in self.files.layers and out.endswith("q_proj.weight"):
            yield from self._zero_biases(index)

    def _index(self, out: str) -> int | None:
        prefix = f"{self.form.mlp.layers}."
        return int(out.removeprefix(prefix).split(".")[0]) if out.startswith(prefix) else None

    def _layers(self) -> int:
        key = "num_hidden_layers" if "num_hidden_layers" in self.form.config else "n_layer"
        return int(self.form.config[key])

    def _hidden(self) -> int:
        router = next(iter(self.files.layers.values())).router
        return self._source.tensors[router].shape[1]

    def _zero_biases(self, layer: int) -> Iterator[OutTensor]:
        for projection in self.form.zero_biases:
            stem = f"{self.form.mlp.layers}.{layer}.self_attn.{projection}"
            shape = self._source.tensors[f"{stem}.weight"].shape[:1]
            dtype = self._source.dtype(f"{stem}.weight")
            yield OutTensor(f"{stem}.bias", f"{stem}.bias", (), shape, dtype, "new", (Block(shape),))

    # -- layers that were dense already -----------------------------------------------------------------------------

    def _is_ffn(self, out: str) -> bool:
        return f".{self.form.mlp.module}." in out

    def _dense_widths(self) -> Iterator[int]:
        mlp = self.form.mlp
        for name, info in self._source.tensors.items():
            out = name.removeprefix("lm.") if self.files.kind == GENERIC else name
            index = self._index(out)
            if index is None or index in self.files.layers or index >= self._layers():
                continue
            if out == f"{mlp.layers}.{index}.{mlp.module}.{mlp.down.name}.weight":
                yield info.shape[0] if mlp.transposed else info.shape[1]

    def _padded(self, tensor: OutTensor) -> OutTensor:
        """A dense layer's tensor, padded with zero neurons to the common width."""
        slot, _, kind = tensor.name.rpartition(f".{self.form.mlp.module}.")[2].rpartition(".")
        halves = 1 if slot == self.form.mlp.down.name or self.form.mlp.up.half is None else 2
        is_down = slot == self.form.mlp.down.name
        if is_down and kind == "bias":
            return tensor
        axis = 0 if kind == "bias" else int(is_down != self.form.mlp.transposed)
        missing = self.width - tensor.shape[axis] // halves
        if not missing:
            return tensor
        shape = tuple(n + halves * missing * (i == axis) for i, n in enumerate(tensor.shape))
        name = tensor.blocks[0].reads[0].tensor
        return self._made(
            tensor.name, shape, tensor.dtype, partial(_with_zeros, self._source, name, axis, halves, missing)
        )

    # -- the FFN -------------------------------------------------------------------------------------------------

    def _width(self, parts: Sequence[_Part]) -> int:
        return sum(self._source.tensors[part.ffn["down"]].shape[1] for part in parts)

    def _ffn(self, layer: int) -> Iterator[OutTensor]:
        mlp, parts = self.form.mlp, self.parts(layer)
        fused = mlp.up.half is not None
        order = ("up", "gate") if fused and mlp.up.half == 0 else ("gate", "up")
        inner = [part for part in order if part == "up" or mlp.gate is not None]
        slots = {mlp.up.name: inner} if fused else {getattr(mlp, part).name: [part] for part in inner}
        for slot, held in slots.items():
            for tail in ("", "_bias") if mlp.bias else ("",):
                yield self._inner(layer, slot, [part + tail for part in held], parts)
        yield self._down(layer, parts)
        if mlp.bias:
            yield self._down_bias(layer, parts)

    def _name(self, layer: int, slot: str, kind: str) -> str:
        mlp = self.form.mlp
        return f"{mlp.layers}.{layer}.{mlp.module}.{slot}.{kind}"

    def _inner(self, layer: int, slot: str, held: Sequence[str], parts: Sequence[_Part]) -> OutTensor:
        """gate, up, or both in one matrix: the parts' rows, stacked."""
        blocks: list[Block] = []
        for projection in held:
            blocks += [self._block(part.ffn[projection]) for part in parts]
            missing = self.width - self._width(parts)
            if missing:
                blocks.append(Block((missing, *blocks[-1].shape[1:])))
        rows, columns = sum(block.shape[0] for block in blocks), blocks[0].shape[1:]
        is_bias = held[0].endswith("_bias")
        name, dtype = self._name(layer, slot, "bias" if is_bias else "weight"), self._dtype(parts)
        if is_bias or not self.form.mlp.transposed:
            return OutTensor(name, name, (), (rows, *columns), dtype, "kept", tuple(blocks))
        return self._made(name, (*columns, rows), dtype, partial(_below, self._source, blocks))

    def _down(self, layer: int, parts: Sequence[_Part]) -> OutTensor:
        """The parts' columns side by side, each multiplied by its weight."""
        name, dtype = self._name(layer, self.form.mlp.down.name, "weight"), self._dtype(parts)
        blocks = [self._block(part.ffn["down"], part.scale) for part in parts]
        hidden, missing = blocks[0].shape[0], self.width - self._width(parts)
        if len(parts) == 1 and not missing and not self.form.mlp.transposed:
            return OutTensor(name, name, (), blocks[0].shape, dtype, "kept", (blocks[0],))
        shape = (self.width, hidden) if self.form.mlp.transposed else (hidden, self.width)
        return self._made(name, shape, dtype, partial(_beside, self._source, blocks, missing, self.form.mlp.transposed))

    def _down_bias(self, layer: int, parts: Sequence[_Part]) -> OutTensor:
        name = self._name(layer, self.form.mlp.down.name, "bias")
        # Every shard has the full bias, so G gates of 1/G add up to one bias.
        blocks = [self._block(part.ffn["down_bias"], part.scale) for part in parts]
        return self._made(name, blocks[0].shape, self._dtype(parts), partial(_added, self._source, blocks))

    def _block(self, name: str, scale: float = 1.0) -> Block:
        return Block(self._source.tensors[name].shape, (Read(SOURCE, name),), scale=scale)

    def _dtype(self, parts: Sequence[_Part]) -> str:
        return self._source.dtype(parts[0].ffn["down"])

    def _made(self, name: str, shape: tuple[int, ...], dtype: str, make: Callable[[], Tensor]) -> OutTensor:
        self.makers[name] = make
        return OutTensor(name, name, (), shape, dtype, "kept", (Block(shape, fill="rows", stream=name),))


def _values(source: Checkpoint, block: Block) -> Tensor:
    import torch

    if not block.reads:
        return torch.zeros(block.shape)
    return source.read(block.reads[0].tensor).float() * block.scale


def _below(source: Checkpoint, blocks: Sequence[Block]) -> Tensor:
    import torch

    return torch.cat([_values(source, block) for block in blocks]).T


def _beside(source: Checkpoint, blocks: Sequence[Block], missing: int, transposed: bool) -> Tensor:
    import torch

    columns = [_values(source, block) for block in blocks]
    side_by_side = torch.cat([*columns, torch.zeros(columns[0].shape[0], missing)], dim=1)
    return side_by_side.T if transposed else side_by_side


def _added(source: Checkpoint, blocks: Sequence[Block]) -> Tensor:
    import torch

    return torch.stack([_values(source, block) for block in blocks]).sum(0)


def _with_zeros(source: Checkpoint, name: str, axis: int, halves: int, missing: int) -> Tensor:
    import torch

    parts = []
    for part in source.read(name).float().chunk(halves, dim=axis):
        zeros = list(part.shape)
        zeros[axis] = missing
        parts += [part, torch.zeros(zeros)]
    return torch.cat(parts, dim=axis)
