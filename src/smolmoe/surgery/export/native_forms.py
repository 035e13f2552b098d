"""What an MoE computes, in terms common to all MoE classes, and which classes compute the same.

The attention and the norms are described by the dense class that has them, so that a target's own data
(`smolmoe.families`) determine whether it supports them; the routing by a few properties that a target may have
settings for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from smolmoe.core.files import write_json
from smolmoe.errors import SourceError, TargetError
from smolmoe.families import MOE_TARGETS, DenseSpec, MoeTarget
from smolmoe.families.fit import GENERIC, settings
from smolmoe.families.forms import DenseForm
from smolmoe.families.resolve import refusals, source_refusals
from smolmoe.families.spec import read_spec
from smolmoe.families.types import MoeSizes
from smolmoe.surgery.experts.dense_config import dense_form
from smolmoe.surgery.experts.moe_files import MoeFiles

# Width of a zero shared expert: the smallest that every kernel and quantisation supports.
ZERO_WIDTH = 32


@dataclass(frozen=True)
class Gates:
    """How an MoE routes.

    Attributes:
        scoring: "softmax" or "sigmoid" of the logits.
        normalised: the gates of the chosen experts sum to `scale`.
        scale: constant factor of the gates.
        biased: a non-zero selection bias affects the choice.
        grouped: a token may choose only from some groups of experts.
        limited: experts drop tokens, or a token uses fewer than K (capacity, top-p).
        shared: no shared expert, a plain one, one behind a zero gate (weight one half), or a trained gate.
    """

    scoring: str
    normalised: bool
    scale: float
    biased: bool
    grouped: bool
    limited: bool
    shared: Literal["none", "plain", "half", "gated"]


@dataclass(frozen=True)
class Subject:
    """The properties of an MoE that another class must reproduce.

    Attributes:
        files: the MoE.
        form: its dense class without the experts.
        spec: the same as a `DenseSpec`.
        sizes: E, K and the widths.
        gates: how it routes.
    """

    files: MoeFiles
    form: DenseForm
    spec: DenseSpec
    sizes: MoeSizes
    gates: Gates


def subject_of(files: MoeFiles) -> Subject:
    """Describe an MoE.

    Raises:
        TargetError: no other known class has its attention, norms or multipliers; states why.
        SourceError: a config that its class cannot load.
    """
    form = dense_form(files)
    width, shared = widths(files)
    key = form.width_key or "intermediate_size"
    dense_width = int(form.config.get(key) or files.setting("intermediate_size") or width)
    spec = _spec(form.config | {key: form.config.get(key) or dense_width})
    dense_layers = [index for index in range(spec.layers) if index not in files.layers]
    sizes = MoeSizes(files.experts, files.top_k, width, shared, dense_width, dense_layers)
    return Subject(files, form, spec, sizes, _gates(files))


def _spec(config: dict[str, Any]) -> DenseSpec:
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", config)
        return read_spec(Path(folder))


def widths(files: MoeFiles) -> tuple[int, int]:
    """The routed experts' width, and the shared one's (0: none).

    Raises:
        SourceError: layers of unequal widths, which no MoE class supports.
    """
    parts = files.parts.tensors
    found = {
        (parts[layer.experts[0]["down"]].shape[1], parts[layer.shared["down"]].shape[1] if layer.shared else 0)
        for layer in files.layers.values()
    }
    if len(found) > 1:
        raise SourceError("its layers have experts of different widths.", field="model", value=str(files.folder))
    return found.pop()


def _gates(files: MoeFiles) -> Gates:
    biases = [layer.selection_bias for layer in files.layers.values() if layer.selection_bias is not None]
    groups = int(files.config.get("n_group") or 1)
    everything = files.top_k == files.experts and not files.sigmoid  # the softmax over all sums to 1
    return Gates(
        scoring="sigmoid" if files.sigmoid else "softmax",
        normalised=files.renormalises or everything,
        scale=files.gate_scale,
        biased=any(bool(files.parts.read(bias).any()) for bias in biases),
        grouped=int(files.config.get("topk_group") or groups) < groups,
        limited=any(files.config.get(key) is not None for key in ("capacity_factor", "router_top_p")),
        shared=_shared(files),
    )


def _shared(files: MoeFiles) -> Literal["none", "plain", "half", "gated"]:
    layers = list(files.layers.values())
    if not layers[0].shared:
        return "none"
    gates = [layer.shared_gate for layer in layers if layer.shared_gate is not None]
    if not gates:
        return "plain"
    return "gated" if any(bool(files.parts.read(gate).any()) for gate in gates) else "half"


def sizes_as(target: MoeTarget, subject: Subject) -> MoeSizes:
    """The sizes as a target: a target that requires a shared expert gets a narrow one if the source has none."""
    if target.shared != "required" or subject.sizes.shared_width:
        return subject.sizes
    follows = target.shared_multiple or target.shared_same
    return replace(subject.sizes, shared_width=subject.sizes.width if follows else ZERO_WIDTH)


def settings_of(target: MoeTarget, subject: Subject) -> dict[str, Any]:
    """The target's own settings, with the source's routing where the target has settings for it."""
    own = settings(subject.spec, target, sizes_as(target, subject))
    routing = {
        "norm_topk_prob": subject.gates.normalised,
        "routed_scaling_factor": subject.gates.scale,
        target.scoring_key: subject.gates.scoring,
    }
    return own | {key: value for key, value in routing.items() if key in own}


def reasons_against(target: MoeTarget, subject: Subject) -> list[str]:
    """Why a class cannot compute the same function as an MoE; empty if it can."""
    # Options of upcycling are not available here.
    reasons = [reason.split(" (--")[0] for reason in refusals(target, subject.spec, sizes_as(target, subject))]
    if source_refusals(target, subject.spec):
        return reasons  # a class's settings are only defined for a source that it supports
    return reasons + list(_routing_reasons(target, subject))


def _routing_reasons(target: MoeTarget, subject: Subject) -> Iterator[str]:
    gates, own = subject.gates, target.config(subject.spec, sizes_as(target, subject))
    generic = target.name == GENERIC
    # The one expert with the highest logit has the highest score either way, and its gate is 1.
    either = subject.sizes.top_k == 1 and gates.normalised and not gates.biased
    if gates.scoring != target.scoring and not generic and not either:
        yield f"its scores are the {target.scoring} of the logits, the source uses the {gates.scoring}"
    if not gates.normalised and "norm_topk_prob" not in own:
        yield "it always renormalises the gates of the chosen experts to sum to 1, the source does not"
    if gates.biased and target.names.selection_bias is None:
        yield "it has no selection bias, but the source has a non-zero one"
    if gates.shared == "gated" and not target.shared_gated:
        yield "it has no gate on the shared expert, but the source has a trained one"
    if gates.grouped:
        yield "the source uses group-limited routing"
    if gates.limited and not generic:
        yield "the source limits the experts per token or the tokens per expert (top-p, capacity)"


def able(subject: Subject) -> list[str]:
    """The other equivalent classes, native ones first."""
    return [
        name
        for name, target in MOE_TARGETS.items()
        if name != subject.files.kind and not reasons_against(target, subject)
    ]


def check_target(name: str, subject: Subject) -> MoeTarget:
    """The class of that name.

    Raises:
        TargetError: unknown, the source's own, or not equivalent; states why, and which classes are.
    """
    others = able(subject)
    instead = f"These can: {', '.join(others)}." if others else "No other class can."
    if name not in MOE_TARGETS:
        raise TargetError("no such class.", field="to", value=name, fix=f"Known: {', '.join(MOE_TARGETS)}, gguf.")
    if name == subject.files.kind:
        raise TargetError("the model already has this class.", field="to", value=name, fix=instead)
    reasons = reasons_against(MOE_TARGETS[name], subject)
    if reasons:
        raise TargetError(f"{name} is not equivalent: {'; '.join(reasons)}.", field="to", value=name, fix=instead)
    return MOE_TARGETS[name]


def rounds(scale: float) -> bool:
    """Whether multiplying by it rounds a float that has few digits."""
    return math.frexp(scale)[0] != 0.5
