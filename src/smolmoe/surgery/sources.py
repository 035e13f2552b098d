"""A source's tensors under the names of its class, checked against its config; specialists checked against the base."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smolmoe.checkpoint import FLOAT_DTYPES, Checkpoint
from smolmoe.errors import CheckpointError, RequestError, SourceError
from smolmoe.families import DenseSpec, Slot
from smolmoe.families.spec import read_spec

BASE = "base"
# Buffers that old checkpoints carry and no class loads.
_LEFTOVERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source: its name on disk, its shape, torch's name of its dtype."""

    disk_name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """A dense checkpoint as surgery sees it: `tensors` by the name that the class gives them, in a natural order."""

    checkpoint: Checkpoint
    spec: DenseSpec
    tensors: dict[str, SourceTensor]

    def layer_of(self, name: str) -> int | None:
        """Index of the decoder layer that a tensor belongs to, None outside the layers."""
        prefix = f"{self.spec.mlp.layers}."
        return int(name[len(prefix) :].split(".")[0]) if name.startswith(prefix) else None

    def slot_name(self, layer: int, slot: Slot, kind: str = "weight") -> str:
        mlp = self.spec.mlp
        return f"{mlp.layers}.{layer}.{mlp.module}.{slot.name}.{kind}"

    def ffn_names(self, layer: int) -> list[str]:
        """Names of all tensors of a layer's FFN."""
        mlp = self.spec.mlp
        slots = {slot.name: slot for slot in (mlp.gate, mlp.up, mlp.down) if slot is not None}.values()
        kinds = ("weight", "bias") if mlp.bias else ("weight",)
        return [self.slot_name(layer, slot, kind) for slot in slots for kind in kinds]


def source_tensors(checkpoint: Checkpoint, spec: DenseSpec, field: str) -> Source:
    """Name and check a source's tensors.

    Raises:
        CheckpointError: tensors that the config promises are missing or of another shape.
        SourceError: tensors of a kind that cannot be converted (integers, fp8: quantised).
    """
    named = _class_names(checkpoint, spec)
    _check_floats(checkpoint, named)
    tensors = {
        name: SourceTensor(disk, checkpoint.tensors[disk].shape, checkpoint.dtype(disk))
        for name, disk in sorted(named.items(), key=lambda item: _natural(item[0], spec))
    }
    source = Source(checkpoint, spec, tensors)
    _check_complete(source, _expected(source), field)
    return source


def _class_names(checkpoint: Checkpoint, spec: DenseSpec) -> dict[str, str]:
    """Name in the class -> name on disk. Some checkpoints (gpt2's) lack the prefix of the backbone."""
    names = [name for name in checkpoint.tensors if not name.endswith(_LEFTOVERS)]
    if spec.tied:
        names = [name for name in names if name != "lm_head.weight"]
    prefix = spec.mlp.layers.split(".")[0] + "."
    bare = not any(name.startswith(prefix) for name in names)
    return {prefix + name if bare and not name.startswith("lm_head.") else name: name for name in names}


def _natural(name: str, spec: DenseSpec) -> tuple[int, int, str]:
    """Before the layers, the layers by number, after them: so that writing reads a source front to back."""
    prefix = f"{spec.mlp.layers}."
    if name.startswith(prefix):
        return (1, int(name[len(prefix) :].split(".")[0]), name)
    return (0 if "embed" in name or "wte" in name or "wpe" in name else 2, 0, name)


def _check_floats(checkpoint: Checkpoint, named: dict[str, str]) -> None:
    for name, disk in named.items():
        dtype = checkpoint.tensors[disk].dtype
        if dtype not in FLOAT_DTYPES:
            raise SourceError(
                f"tensor {name} is of {dtype}; sources must be fp32, fp16 or bf16, so this one is quantised or not a "
                "language model's weights.",
                field="dtype",
                value=dtype,
                fix="Use the unquantised checkpoint.",
            )


def _expected(source: Source) -> dict[str, tuple[int, ...] | None]:
    """Names that must be there, with their shapes where we know them."""
    spec = source.spec
    expected: dict[str, tuple[int, ...] | None] = {}
    if spec.family is not None:
        expected |= {
            "model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size),
            "model.norm.weight": (spec.hidden_size,),
        }
        if not spec.tied:
            expected["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.layers):
        expected |= _expected_ffn(source, layer)
        if spec.family is not None:
            expected |= _expected_attention(spec, layer)
    return expected


def _expected_ffn(source: Source, layer: int) -> dict[str, tuple[int, ...] | None]:
    spec = source.spec
    mlp = spec.mlp
    expected: dict[str, tuple[int, ...] | None] = {}
    for slot, is_down in ((mlp.gate, False), (mlp.up, False), (mlp.down, True)):
        if slot is None:
            continue
        neurons = spec.ffn_size * (2 if slot.half is not None else 1)
        shape = (spec.hidden_size, neurons) if is_down else (neurons, spec.hidden_size)
        expected[source.slot_name(layer, slot)] = shape[::-1] if mlp.transposed else shape
        if mlp.bias:
            expected[source.slot_name(layer, slot, "bias")] = shape[:1]
    return expected


def _expected_attention(spec: DenseSpec, layer: int) -> dict[str, tuple[int, ...] | None]:
    assert spec.family is not None
    d, q, kv = spec.hidden_size, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    stem = f"{spec.mlp.layers}.{layer}"
    weights = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
    biased = {"none": (), "qkv": ("q_proj", "k_proj", "v_proj"), "qkvo": tuple(weights)}[spec.attention_bias]
    norm = {"none": (0, 0), "head": (spec.head_dim, spec.head_dim), "full": (q, kv)}[spec.qk_norm]
    expected: dict[str, tuple[int, ...] | None] = {f"{stem}.{name}.weight": (d,) for name in spec.family.norms}
    expected |= {f"{stem}.self_attn.{name}.weight": shape for name, shape in weights.items()}
    expected |= {f"{stem}.self_attn.{name}.bias": weights[name][:1] for name in biased}
    if norm[0]:
        expected |= {f"{stem}.self_attn.q_norm.weight": (norm[0],), f"{stem}.self_attn.k_norm.weight": (norm[1],)}
    return expected


def _check_complete(source: Source, expected: dict[str, tuple[int, ...] | None], field: str) -> None:
    where = str(source.checkpoint.folder)
    for name, shape in expected.items():
        if name not in source.tensors:
            raise CheckpointError(
                f"tensor {name}, which the config promises, is not in the files.",
                field=field,
                value=where,
                fix="Download the checkpoint again, or check its config.json.",
            )
        if shape is not None and source.tensors[name].shape != shape:
            raise CheckpointError(
                f"tensor {name} has shape {source.tensors[name].shape}, the config says {shape}.",
                field=field,
                value=where,
                fix="Weights and config.json are not of the same model.",
            )
    extra = sorted(set(source.tensors) - set(expected))
    if source.spec.family is not None and extra:
        raise SourceError(
            f"{len(extra)} tensor(s) that a {source.spec.model_type} of this config does not have: {extra[0]}.",
            field=field,
            value=where,
            fix="Adapters and quantisation scales must be merged into the weights first.",
        )


# Settings in which a specialist must be its base, or the same weights would mean something else.
_SAME_SETTINGS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rope_parameters",
    "tie_word_embeddings",
    "rms_norm_eps",
)


def specialist_tensors(name: str, checkpoint: Checkpoint, base: Source) -> Source:
    """A specialist's tensors; it must be the base with other weights: same class, settings and shapes.

    Raises:
        RequestError: naming the first difference.
    """
    option, where = f"expert {name}", str(checkpoint.folder)
    config, expected = read_spec(checkpoint.folder).config, base.spec.config
    for key in _SAME_SETTINGS:
        if config.get(key) != expected.get(key):
            raise RequestError(
                f"its {key} is {config.get(key)}, the base's {expected.get(key)}.",
                field=option,
                value=where,
                fix="Specialists must be fine-tuned from the same base.",
            )
    source = source_tensors(checkpoint, base.spec, option)
    if {n: t.shape for n, t in source.tensors.items()} != {n: t.shape for n, t in base.tensors.items()}:
        raise RequestError("its tensors are not those of the base.", field=option, value=where)
    return source
