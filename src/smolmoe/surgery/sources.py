"""A source's tensors under their class names, checked against its config; specialists checked against the base."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from smolmoe.core.checkpoint import FLOAT_DTYPES, Checkpoint
from smolmoe.core.tensor_names import LEFTOVERS, explain_names
from smolmoe.core.tied_head import embedding_name, has_own_head, head_name
from smolmoe.core.vocabulary import spare_tokens
from smolmoe.errors import CheckpointError, RequestError, SourceError
from smolmoe.families import DenseSpec, Slot
from smolmoe.families.spec import read_spec

BASE = "base"


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source: its name on disk, its shape, torch's name for its dtype."""

    disk_name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """A dense checkpoint, as used by surgery.

    Attributes:
        tensors: by their class name, in natural order.
        untied: the config ties an output head that has separate weights in the files; `spec` follows the files.
    """

    checkpoint: Checkpoint
    spec: DenseSpec
    tensors: dict[str, SourceTensor]
    untied: bool = False

    def layer_of(self, name: str) -> int | None:
        """Index of the decoder layer that a tensor belongs to; None outside the layers."""
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
        CheckpointError: tensors that the config requires are missing or have a different shape.
        SourceError: tensors that the class does not have, or that are not floats (quantised).
    """
    untied = spec.tied and has_own_head(checkpoint)
    if untied:
        spec = replace(spec, tied=False, config=spec.config | {"tie_word_embeddings": False})
    named = _class_names(checkpoint, spec, field)
    _check_floats(checkpoint, named)
    tensors = {
        name: SourceTensor(disk, checkpoint.tensors[disk].shape, _dtype(checkpoint, disk, spec))
        for name, disk in sorted(named.items(), key=lambda item: natural(item[0], spec))
    }
    source = Source(checkpoint, spec, tensors, untied)
    _check_complete(source, _expected(source), field)
    return source


def source_warnings(source: Source, name: str) -> Iterator[str]:
    """Warnings about what is carried over differently from the source's files or config."""
    spare = spare_tokens(source.checkpoint.folder, source.spec.vocab_size)
    if spare:
        yield (
            f"{name}: the tokenizer has more tokens than the model's vocabulary of {source.spec.vocab_size:,}: "
            f"{', '.join(map(repr, spare[:4]))}{f' and {len(spare) - 4} more' if len(spare) > 4 else ''}. Text that "
            "contains one of them cannot be processed."
        )
    if source.untied:
        yield (
            f"{name}: config.json ties the output head to the embedding, but the files have a separate head "
            f"({head_name(source.checkpoint)}) with different weights. transformers loads it untied, so it is kept "
            "and the result has tie_word_embeddings: false."
        )
    doubles = [t for t in source.tensors.values() if source.checkpoint.tensors[t.disk_name].dtype == "F64"]
    if doubles:
        yield (
            f"{name}: {len(doubles)} tensors are in float64 (the first is {doubles[0].disk_name}); they are read as "
            f"{doubles[0].dtype}, as transformers loads them."
        )


def _dtype(checkpoint: Checkpoint, disk: str, spec: DenseSpec) -> str:
    """A tensor's dtype; for float64, in which no model runs, the config's dtype."""
    found = checkpoint.dtype(disk)
    if found != "float64":
        return found
    stated = str(spec.config.get("dtype") or spec.config.get("torch_dtype")).removeprefix("torch.")
    return stated if stated in ("float16", "bfloat16") else "float32"


def _class_names(checkpoint: Checkpoint, spec: DenseSpec, field: str) -> dict[str, str]:
    """Name in the class -> name on disk. Some checkpoints (gpt2's) lack the prefix of the backbone."""
    if spec.family is None or spec.family.by_class:
        return _names_by_class(checkpoint, field)
    names = [name for name in checkpoint.tensors if not name.endswith(LEFTOVERS)]
    head, embedding = head_name(checkpoint), embedding_name(checkpoint)
    if spec.tied and embedding is not None:
        names = [name for name in names if name != head]
    prefix = spec.mlp.layers.split(".")[0] + "."
    bare = not any(name.startswith(prefix) for name in names)
    named = {prefix + name if bare and not name.startswith("lm_head.") else name: name for name in names}
    if spec.tied and embedding is None and head is not None:
        named["model.embed_tokens.weight"] = named.pop(head)  # either of the two serves as both
    return named


def _names_by_class(checkpoint: Checkpoint, field: str) -> dict[str, str]:
    """The same, using transformers' renaming, for a class that is not built in; all tensors must be present.

    Raises:
        CheckpointError: the tensors do not fit the class. SourceError: it splits them differently from the files.
    """
    from smolmoe.moe.loading import Skeleton

    skeleton = Skeleton(checkpoint.folder)
    known, tied = skeleton.model.state_dict(), skeleton.model.all_tied_weights_keys
    named: dict[str, str] = {}
    for disk, name in skeleton.names.items():
        if name not in known or (name in tied and tied[name] in skeleton.names.values()):
            continue
        if name in named or tuple(known[name].shape) != checkpoint.tensors[disk].shape:
            raise SourceError(f"its class splits {name} differently from the files ({disk}).", field=field, value=disk)
        named[tied.get(name, name)] = disk  # a tied head alone is the embedding
    return named


def natural(name: str, spec: DenseSpec) -> tuple[int, int, str]:
    """Before the layers, the layers by number, after the layers: writing then reads a source sequentially."""
    prefix = f"{spec.mlp.layers}."
    if name.startswith(prefix):
        return (1, int(name[len(prefix) :].split(".")[0]), name)
    return (0 if "embed" in name or "wte" in name or "wpe" in name else 2, 0, name)


def _check_floats(checkpoint: Checkpoint, named: dict[str, str]) -> None:
    for name, disk in named.items():
        dtype = checkpoint.tensors[disk].dtype
        if dtype not in FLOAT_DTYPES:
            raise SourceError(
                f"tensor {name} has dtype {dtype}; weights must be 16-, 32- or 64-bit floats.",
                field="dtype",
                value=dtype,
                fix="Use the unquantised checkpoint.",
            )


def _expected(source: Source) -> dict[str, tuple[int, ...] | None]:
    """Required names, with their shapes if known."""
    spec = source.spec
    expected: dict[str, tuple[int, ...] | None] = {}
    known = spec.family is not None and not spec.family.by_class
    if known:
        expected |= {
            "model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size),
            "model.norm.weight": (spec.hidden_size,),
        }
        if not spec.tied:
            expected["lm_head.weight"] = (spec.vocab_size, spec.hidden_size)
    for layer in range(spec.layers):
        expected |= _expected_ffn(source, layer)
        if known:
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
    where, spec = str(source.checkpoint.folder), source.spec
    absent = [name for name in expected if name not in source.tensors]
    found = (
        explain_names(expected, source.checkpoint.tensors) if absent or len(source.tensors) > len(expected) else None
    )
    if found is not None:
        raise SourceError(found[0], field=field, value=where, fix=found[1])
    for name in absent:
        layer = source.layer_of(name)
        raise CheckpointError(
            f"tensor {name}, which the config requires, is missing from the files.",
            field=field,
            value=where,
            fix=f"config.json says {spec.layers} layers; the files have {_layers(source)}."
            if layer is not None and layer >= _layers(source)
            else "Download the checkpoint again, or check its config.json.",
        )
    for name, shape in expected.items():
        if shape is not None and source.tensors[name].shape != shape:
            raise CheckpointError(
                f"tensor {name} has shape {source.tensors[name].shape}, but the config says {shape}.",
                field=field,
                value=where,
                fix="Weights and config.json must come from the same model.",
            )
    extra = sorted(set(source.tensors) - set(expected), key=lambda name: natural(name, spec))
    if spec.family is not None and not spec.family.by_class and extra:
        raise SourceError(
            f"{len(extra)} unexpected tensor(s) for a {spec.model_type} with this config: {extra[0]}.",
            field=field,
            value=where,
            fix=f"config.json says {spec.layers} layers; the files have {_layers(source)}."
            if _layers(source) > spec.layers
            else "Remove them from the files if the model does not need them, or correct config.json.",
        )


def _layers(source: Source) -> int:
    """Number of decoder layers in the files."""
    return 1 + max((layer for name in source.tensors if (layer := source.layer_of(name)) is not None), default=-1)


# Settings in which a specialist must match its base, or the same weights would compute something else.
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
    "rms_norm_eps",
)


def specialist_tensors(name: str, checkpoint: Checkpoint, base: Source) -> Source:
    """A specialist's tensors; it must match the base in class, settings and shapes.

    Raises:
        RequestError: naming the first difference.
    """
    option, where = f"expert {name}", str(checkpoint.folder)
    spec = read_spec(checkpoint.folder)
    config, expected = spec.config, base.spec.config
    for key in _SAME_SETTINGS:
        if config.get(key) != expected.get(key):
            raise RequestError(
                f"its {key} is {config.get(key)}, but the base's is {expected.get(key)}.",
                field=option,
                value=where,
                fix="Specialists must be fine-tuned from the same base.",
            )
    source = source_tensors(checkpoint, spec, option)
    if source.spec.tied != base.spec.tied:
        said = {True: "tied to the embedding", False: "a separate tensor"}
        raise RequestError(
            f"its output head is {said[source.spec.tied]}, but the base's is {said[base.spec.tied]}.",
            field=option,
            value=where,
            fix="Save all models tied, or all untied.",
        )
    shapes, theirs = ({n: t.shape for n, t in each.tensors.items()} for each in (base, source))
    for name in sorted({*shapes, *theirs}, key=lambda name: natural(name, base.spec)):
        if shapes.get(name) != theirs.get(name):
            raise RequestError(
                f"its tensor {name} is {theirs.get(name, 'missing')}, but the base's is {shapes.get(name, 'missing')}.",
                field=option,
                value=where,
                fix="Specialists must be fine-tuned from the same base.",
            )
    return source
