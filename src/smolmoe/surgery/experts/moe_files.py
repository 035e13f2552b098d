"""The files of an MoE, tensor by tensor: shared tensors, and those of each expert of each layer.

Derived from the names on disk, without loading a weight. Stacked experts are treated as if they were not stacked:
`MoeFiles.parts` has each projection of each expert as a separate tensor, wherever its bytes are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import FLOAT_DTYPES, Checkpoint, open_checkpoint
from smolmoe.core.model_config import EXPERT_COUNTS, read_config
from smolmoe.core.provenance import read_provenance
from smolmoe.core.safetensors_file import TensorInfo
from smolmoe.core.tied_head import has_own_head
from smolmoe.errors import CheckpointError, SourceError
from smolmoe.families import MOE_TARGETS, ExpertNames, MoeNames
from smolmoe.families.architecture import architecture_of
from smolmoe.families.fit import GENERIC
from smolmoe.families.moe.qwen2_moe import PROJ_EXPERTS

_OLMOE = MoeNames(
    router="mlp.gate.weight", memory_router="mlp.gate.weight", experts=PROJ_EXPERTS, memory_experts="mlp.experts"
)
Ffn = Mapping[str, str]  # "gate", "up", "down" (and "gate_bias", ...) -> name in `MoeFiles.parts`


@dataclass(frozen=True)
class MoeLayer:
    """The tensors of one layer's MoE, by their names in `MoeFiles.parts`.

    Attributes:
        router: [E, D].
        experts: E routed FFNs.
        selection_bias: [E], or None.
        shared: the shared expert's FFN; empty if the layer has no shared expert.
        shared_gate: [1, D] of its sigmoid gate, or None.
    """

    router: str
    experts: tuple[Ffn, ...]
    selection_bias: str | None
    shared: Ffn
    shared_gate: str | None


@dataclass(frozen=True)
class MoeFiles:
    """A checkpoint folder of an MoE.

    Attributes:
        checkpoint: the tensors as they are on disk.
        parts: the same, with stacked experts and a fused gate and up split.
        config: config.json.
        kind: the target's name: "mixtral", ..., "generic"; or "olmoe".
        layers: the MoE layers, by index.
        owner: name on disk -> (layer, expert), for tensors of a single expert.
        shared: name on disk -> layer, of shared experts and their gates.
        stacks: name on disk -> layer, of tensors with a row for each expert, routers and selection biases included.
    """

    checkpoint: Checkpoint
    parts: Checkpoint
    config: dict[str, Any]
    kind: str
    layers: dict[int, MoeLayer]
    owner: dict[str, tuple[int, int]]
    shared: dict[str, int]
    stacks: dict[str, int]

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def experts(self) -> int:
        """E."""
        return len(next(iter(self.layers.values())).experts)

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.setting(self._top_k_key))

    @property
    def _top_k_key(self) -> str:
        return MOE_TARGETS[self.kind].top_k if self.kind in MOE_TARGETS else "num_experts_per_tok"

    @property
    def granularity(self) -> int:
        """G: the experts g*G ... g*G+G-1 are the shards of one FFN. 1 if not recorded."""
        layout = self.provenance().get("layout") or {}
        granularity = int(layout.get("granularity") or 1)
        return granularity if self.experts % granularity == 0 else 1

    def layer_of(self, name: str) -> int | None:
        """The MoE layer whose FFN a tensor on disk belongs to; None for any other tensor."""
        if name in self.owner:
            return self.owner[name][0]
        return self.shared.get(name, self.stacks.get(name))

    def in_order(self) -> Iterator[str | int]:
        """The contents of the files, in order: names of tensors outside the MoE, and each MoE layer once."""
        seen: set[int] = set()
        for name in self.checkpoint.tensors:
            layer = self.layer_of(name)
            if layer is None:
                yield name
            elif layer not in seen:
                seen.add(layer)
                yield layer

    @property
    def names(self) -> tuple[str | None, ...] | None:
        """The experts' names, if the config has any."""
        found = self.config.get("expert_names")
        return tuple(found) if isinstance(found, list) and len(found) == self.experts else None

    def checkpoint_size(self) -> tuple[int, int, int]:
        """Total parameters, parameters of routed experts, and bytes of the files' tensors."""
        sizes = {name: math.prod(info.shape) for name, info in self.checkpoint.tensors.items()}
        routers = {name for layer in self.layers.values() for name in (layer.router, layer.selection_bias)}
        routed = sum(sizes[name] for name in (*self.owner, *(set(self.stacks) - routers)))
        return sum(sizes.values()), routed, sum(info.nbytes for info in self.checkpoint.tensors.values())

    def setting(self, key: str) -> Any:
        """A setting, or the class's default."""
        if key in self.config:
            return self.config[key]
        from smolmoe.moe.loading import load_config

        return getattr(load_config(self.folder), key, None)

    @property
    def sigmoid(self) -> bool:
        """Whether the router's scores are sigmoids of its logits (otherwise their softmax)."""
        target = MOE_TARGETS.get(self.kind)
        if target and target.scoring_key:
            return bool(self.setting(target.scoring_key) == "sigmoid")
        return target is not None and target.scoring == "sigmoid"

    @property
    def gate_scale(self) -> float:
        """Constant factor of the routed experts' gates."""
        scaling = float(self.setting("routed_scaling_factor") or 1.0) if self.sigmoid else 1.0
        return scaling * self.shared_scale

    @property
    def shared_scale(self) -> float:
        """Constant factor of the shared expert's output: one half if it is averaged with the routed experts'."""
        target = MOE_TARGETS.get(self.kind)
        if target is None or target.averages is None or not next(iter(self.layers.values())).shared:
            return 1.0
        return 0.5 if self.setting(target.averages) == "average" else 1.0

    @property
    def renormalises(self) -> bool:
        """Whether the gates of the chosen experts always have the same sum."""
        target = MOE_TARGETS.get(self.kind)
        return bool((target and target.renormalises) or self.setting("norm_topk_prob"))

    def same_rows(self, layer: int, experts: Sequence[int]) -> bool:
        """Whether these experts have equal router rows and selection biases, and so equal gates for any input."""
        found = self.layers[layer]
        for name in filter(None, (found.router, found.selection_bias)):
            rows = self.parts.read(name)[list(experts)]
            if not bool((rows == rows[:1]).all()):
                return False
        return True

    @property
    def equal_biases(self) -> bool:
        """Whether the selection biases of every layer are all the same, as before training."""
        found = [layer.selection_bias for layer in self.layers.values()]
        rows = [self.parts.read(name) for name in found if name is not None]
        return all(bool((row == row[0]).all()) for row in rows)

    def same_ffns(self, layer: int, experts: Sequence[int]) -> bool:
        """Whether these experts have equal weights."""
        first, *others = (self.layers[layer].experts[e] for e in experts)
        for part, name in first.items() if others else ():
            expected = self.parts.read(name)
            if not all(bool((self.parts.read(other[part]) == expected).all()) for other in others):
                return False
        return True

    @property
    def all_copies(self) -> bool:
        """Whether all experts of every layer are identical, as after upcycling without diversification."""
        return all(self.same_ffns(layer, range(self.experts)) for layer in self.layers)

    def provenance(self) -> dict[str, Any]:
        """The content of the folder's smolmoe.json; empty if the file does not exist."""
        return read_provenance(self.folder)

    def resized(self, experts: int, top_k: int) -> dict[str, Any]:
        """The config for a different number of experts."""
        target = MOE_TARGETS.get(self.kind)
        counts = [key for key in EXPERT_COUNTS if key in self.config] or [target.count if target else "num_experts"]
        return self.config | dict.fromkeys(counts, experts) | {self._top_k_key: top_k}

    def stored(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape on disk of a tensor that `parts` has in this shape: ERNIE's selection bias is a row [1, E]."""
        return (1, *shape) if len(self.checkpoint.tensors[name].shape) > len(self.parts.tensors[name].shape) else shape


def read_moe(source: str | Path, *, field: str = "model") -> MoeFiles:
    """Read the headers of an MoE's files and assign each tensor its role.

    Raises:
        SourceError: the model is dense, or the expert layout of its class is unknown.
        CheckpointError: tensors of an expert are missing, or are not floats.
        HubError: a hub id that cannot be fetched.
    """
    checkpoint = open_checkpoint(source, field=field)
    config = read_config(checkpoint.folder, field)
    if has_own_head(checkpoint):  # regardless of the config: transformers loads it this way
        config |= {"tie_word_embeddings": False}
        if isinstance(config.get("text_config"), dict):
            config["text_config"] |= {"tie_word_embeddings": False}
    kind, names = _names(config, checkpoint.folder, field)
    config["architectures"] = [architecture_of(config)]  # other engines read it; transformers does not need it
    parts = dict(checkpoint.tensors)
    layers: dict[int, MoeLayer] = {}
    owner: dict[str, tuple[int, int]] = {}
    shared: dict[str, int] = {}
    stacks: dict[str, int] = {}
    for index, stem in _stems(config, kind):
        if stem + names.router in checkpoint.tensors:
            layers[index] = _Reader(checkpoint, names, stem, index, parts, owner, shared, stacks).layer()
    if not layers:
        raise _dense(checkpoint.folder, field)
    if len({len(layer.experts) for layer in layers.values()}) > 1:
        raise SourceError("its layers have different numbers of experts.", field=field, value=str(source))
    _check_floats(checkpoint)
    whole = Checkpoint(checkpoint.folder, parts, checkpoint.revision)
    return MoeFiles(checkpoint, whole, config, kind, layers, owner, shared, stacks)


def _names(config: dict[str, Any], folder: Path, field: str) -> tuple[str, MoeNames]:
    model_type = str(config.get("model_type"))
    if model_type == "olmoe":
        return model_type, _OLMOE
    kind = GENERIC if model_type == "smolmoe" else model_type
    if kind in MOE_TARGETS:
        return kind, MOE_TARGETS[kind].names
    if not any(config.get(key) for key in EXPERT_COUNTS):
        raise _dense(folder, field)
    raise SourceError(
        "the expert layout of this class is unknown.",
        field=field,
        value=model_type,
        fix=f"Supported: {', '.join((*MOE_TARGETS, 'olmoe'))}.",
    )


def _dense(folder: Path, field: str) -> SourceError:
    return SourceError("is a dense model: it has no experts.", field=field, value=str(folder), fix="Use an MoE.")


def _stems(config: Mapping[str, Any], kind: str) -> Iterator[tuple[int, str]]:
    """(index, name prefix of its MoE's tensors) of every decoder layer."""
    if kind == GENERIC:
        for index in config["moe_layers"]:
            yield index, f"lm.{config['layers_module']}.{index}.{config['mlp_module']}."
        return
    for index in range(int(config["num_hidden_layers"])):
        yield index, f"model.layers.{index}."


def _check_floats(checkpoint: Checkpoint) -> None:
    for name, info in checkpoint.tensors.items():
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"stored as {info.dtype}: quantised weights cannot be split.",
                field="tensor",
                value=name,
                fix="Use the unquantised checkpoint.",
            )


@dataclass
class _Reader:
    """Finds one layer's tensors and records them in `parts`, `owner`, `shared` and `stacks`."""

    checkpoint: Checkpoint
    names: MoeNames
    stem: str
    index: int
    parts: dict[str, TensorInfo]
    owner: dict[str, tuple[int, int]]
    shared: dict[str, int]
    stacks: dict[str, int]

    def layer(self) -> MoeLayer:
        router = self.stem + self.names.router
        experts = self.parts[router].shape[0]
        self.stacks[router] = self.index
        bias = self._there(self.names.selection_bias)
        if bias is not None:
            self.stacks[bias] = self.index
            info = self.parts[bias]
            self.parts[bias] = replace(info, shape=info.shape[-1:])
        separate = "{e}" in self.names.experts.down
        routed = self._separate(experts) if separate else self._stacked(experts)
        gate = self._there(self.names.shared_gate)
        if gate is not None:
            self.shared[gate] = self.index
        return MoeLayer(router, routed, bias, self._shared(), gate)

    def _there(self, name: str | None) -> str | None:
        return self.stem + name if name is not None and self.stem + name in self.parts else None

    def _separate(self, experts: int) -> tuple[Ffn, ...]:
        found = []
        for e in range(experts):
            ffn = {
                part: self.stem + str(getattr(self.names.experts, part)).format(e=e) for part in ("gate", "up", "down")
            }
            for name in ffn.values():
                self._must_be_there(name)
                self.owner[name] = (self.index, e)
            found.append(ffn)
        return tuple(found)

    def _must_be_there(self, name: str) -> None:
        if name not in self.checkpoint.tensors:
            raise CheckpointError(
                "this expert tensor is missing from the files.",
                field="tensor",
                value=name,
                fix="Save the model with transformers' save_pretrained.",
            )

    def _stacked(self, experts: int) -> tuple[Ffn, ...]:
        names = self.names.experts
        ffns: list[dict[str, str]] = [{} for _ in range(experts)]
        for tail in ("", "_bias"):
            inner = self._there(f"{names.gate_up}{tail}")
            plain = self._there(f"{names.up}{tail}") if names.up else None
            down = self._there(f"{names.down}{tail}")
            if tail and down is None:
                continue
            if down is None or (inner or plain) is None:
                self._must_be_there(self.stem + (str(names.gate_up) if down else names.down))
                continue
            for stack in (inner or plain, down):
                self.stacks[str(stack)] = self.index
            for e, ffn in enumerate(ffns):
                ffn[f"down{tail}"] = self._row(down, e)
                if inner:
                    ffn[f"gate{tail}"], ffn[f"up{tail}"] = self._halves(self._row(inner, e))
                else:
                    ffn[f"up{tail}"] = self._row(str(plain), e)
        return tuple(ffns)

    def _shared(self) -> Ffn:
        names = self.names.shared
        if names is None or self._there(names.down) is None:
            return {}
        ffn: dict[str, str] = {}
        for tail, of in (("", lambda name: name), ("_bias", _as_bias)):
            down, inner = self._there(of(names.down)), self._there(of(names.gate_up) if names.gate_up else None)
            if down is None:
                continue
            ffn[f"down{tail}"] = down
            self.shared[down] = self.index
            if inner is not None:
                self.shared[inner] = self.index
                ffn[f"gate{tail}"], ffn[f"up{tail}"] = self._halves(inner)
            else:
                single = dict(self._single(names, of))
                self.shared |= dict.fromkeys(single.values(), self.index)
                ffn |= {f"{part}{tail}": name for part, name in single.items()}
        return ffn

    def _single(self, names: ExpertNames, of: Any) -> Iterator[tuple[str, str]]:
        for part in ("gate", "up"):
            name = getattr(names, part)
            found = self._there(of(name) if name else None)
            if found is not None:
                yield part, found

    def _row(self, stack: str, e: int) -> str:
        info = self.parts[stack]
        return self._part(f"{stack}[{e}]", info, e, info.shape[0], info.shape[1:])

    def _halves(self, fused: str) -> tuple[str, str]:
        info = self.parts[fused]
        shape = (info.shape[0] // 2, *info.shape[1:])
        return self._part(f"{fused}.gate", info, 0, 2, shape), self._part(f"{fused}.up", info, 1, 2, shape)

    def _part(self, name: str, whole: TensorInfo, index: int, count: int, shape: tuple[int, ...]) -> str:
        nbytes = whole.nbytes // count
        assert math.prod(shape) * count == math.prod(whole.shape)
        self.parts[name] = TensorInfo(whole.file, whole.dtype, shape, whole.offset + index * nbytes, nbytes)
        return name


def _as_bias(name: str) -> str:
    return name.removesuffix(".weight") + ".bias"
