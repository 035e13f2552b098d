"""A dense model in the terms of one MoE class: its settings, and what changes outside the FFNs."""

from __future__ import annotations

from typing import Any

from smolmoe.families.adapt import Adaptation, added, untied
from smolmoe.families.common import COMMON, TOKENS
from smolmoe.families.engines import reasons_against
from smolmoe.families.types import DenseSpec, MoeSizes, MoeTarget

GENERIC = "generic"
# What a config.json says of the file rather than of the model.
_OF_THE_FILE = frozenset(
    ("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version", "_name_or_path")
)


def adaptation(spec: DenseSpec, target: MoeTarget, sizes: MoeSizes | None = None) -> Adaptation:
    """What the source's family and the target ask for, and zeros for biases that only the class has.

    With the sizes of a request also what the engines that could run the result ask for.
    """
    if target.name == GENERIC:
        return Adaptation()
    family = spec.family.adapt(spec, target.name) if spec.family and spec.family.adapt else Adaptation()
    own = target.adapt(spec) if target.adapt else Adaptation()
    head = _own_head(spec, target, sizes) if sizes and spec.tied else Adaptation()
    zeros = dict(target.zero_biases).get(spec.attention_bias, ())
    biases = [added(f"self_attn.{name}.weight", f"self_attn.{name}.bias") for name in zeros]
    return Adaptation(
        (*family.changes, *own.changes, *head.changes, *biases),
        {**head.config, **own.config, **family.config},
        (*family.refusals, *own.refusals),
        (*family.notes, *own.notes, *head.notes),
        (*family.limits, *own.limits),
    )


def _own_head(spec: DenseSpec, target: MoeTarget, sizes: MoeSizes) -> Adaptation:
    """The output head as a separate tensor, if an engine that runs the result does not know of tied ones."""
    config = {**_copied(spec, target), **target.config(spec, sizes), "model_type": target.name}
    ignorant = [name for name, it in target.engines.items() if it.own_head and not reasons_against(name, config)]
    if not ignorant:
        return Adaptation()
    count = spec.vocab_size * spec.hidden_size
    note = (
        f"The output head, tied to the embedding in the source, is written as a separate tensor ({count:,} more "
        f"parameters): {' and '.join(ignorant)} would otherwise compute this class without it."
    )
    return Adaptation((untied,), {"tie_word_embeddings": False}, notes=(note,))


def settings(spec: DenseSpec, target: MoeTarget, sizes: MoeSizes) -> dict[str, Any]:
    """config.json of the result except for its class and dtype: every setting that computing needs, made explicit."""
    return {**_copied(spec, target), **target.config(spec, sizes), **adaptation(spec, target, sizes).config}


def _copied(spec: DenseSpec, target: MoeTarget) -> dict[str, Any]:
    if target.name == GENERIC:
        return {key: spec.config.get(key) for key in TOKENS}
    if target.twin == spec.model_type:
        return {key: value for key, value in spec.config.items() if key not in _OF_THE_FILE}
    constants = spec.family.constants if spec.family else {}
    return {
        **{key: constants.get(key, spec.config.get(key)) for key in COMMON if key in constants or key in spec.config},
        "rope_parameters": spec.rope,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": spec.mlp.activation,
    }
