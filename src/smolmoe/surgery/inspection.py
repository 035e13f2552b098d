"""Describe a dense model, and what each MoE class can express of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.families import MOE_TARGETS, DenseSpec, MoeTarget
from smolmoe.families.resolve import candidates, engine_refusals, refusals, source_refusals
from smolmoe.families.spec import read_spec
from smolmoe.families.types import MoeSizes
from smolmoe.surgery.plan import Parameters, count_dense
from smolmoe.surgery.sources import BASE, source_tensors, source_warnings

EXACT_IN = "float32 files for any granularity, bfloat16 and float16 files for powers of two"


@dataclass(frozen=True)
class TargetReport:
    """What one MoE class can express of the source.

    Attributes:
        target: its name.
        routed, shared: whether it expresses routed experts alone / with a shared expert exactly.
        dense_layers: which layers it can leave dense: "none", "first", "first, last" or "any".
        why_not: reasons why it does not.
        nearest: the first target that expresses what this one does not; "" if this one expresses everything.
        runs: engine -> why it cannot run this source as this class; empty where it can.
    """

    target: str
    routed: bool
    shared: bool
    dense_layers: str
    why_not: tuple[str, ...]
    nearest: str
    runs: dict[str, list[str]]

    @property
    def fits(self) -> bool:
        """Whether it expresses some request of this source."""
        return self.routed or self.shared


@dataclass(frozen=True)
class Inspection:
    """The description of a dense checkpoint, and what it can become."""

    source: str
    family: str
    architecture: str
    sizes: dict[str, int]
    tied: bool
    attention_bias: str
    mlp_bias: bool
    ffn: str
    qk_norm: str
    sliding_window: str
    rope: dict[str, Any]
    dtypes: tuple[str, ...]
    nbytes: int
    parameters: Parameters
    targets: tuple[TargetReport, ...]
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"parameters": self.parameters.to_json()}


def inspect(source: str, *, revision: str | None = None) -> Inspection:
    """Describe a dense model and the MoE classes that can express it, from its config and headers alone.

    Raises:
        SmolmoeError: not a dense decoder-only checkpoint, or damaged.
    """
    checkpoint = open_checkpoint(source, revision=revision)
    found = source_tensors(checkpoint, read_spec(checkpoint.folder), BASE)
    spec, tensors = found.spec, found.tensors
    return Inspection(
        source=source,
        family=spec.model_type if spec.family else f"{spec.model_type} (FFN detected)",
        architecture=spec.architecture,
        sizes={
            "hidden": spec.hidden_size,
            "ffn": spec.ffn_size,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "head_dim": spec.head_dim,
            "vocabulary": spec.vocab_size,
            "context": int(spec.config.get("max_position_embeddings") or spec.config.get("n_positions") or 0),
        },
        tied=spec.tied,
        attention_bias=spec.attention_bias,
        mlp_bias=spec.mlp.bias,
        ffn=f"{'gated' if spec.mlp.gated else 'plain'} {spec.mlp.activation}, at {spec.mlp.layers}.*.{spec.mlp.module}",
        qk_norm=spec.qk_norm,
        sliding_window=_windows(spec),
        rope=dict(spec.config.get("rope_parameters") or {}),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        nbytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        parameters=count_dense(tensors),
        targets=tuple(_report(target, spec) for target in MOE_TARGETS.values()),
        warnings=tuple(source_warnings(found, "source")),
    )


def _windows(spec: DenseSpec) -> str:
    windows = set(spec.windows)
    if windows == {None}:
        return "none"
    if len(windows) == 1:
        return f"{spec.windows[0]} in all layers"
    return f"{max(filter(None, windows))} in {sum(map(bool, spec.windows))} of {spec.layers} layers"


def _report(target: MoeTarget, spec: DenseSpec) -> TargetReport:
    """Check each kind of request against the target; 8 experts, top-2."""
    f = spec.ffn_size
    routed, shared = MoeSizes(8, 2, f, 0, f, []), MoeSizes(8, 2, f, f, f, [])
    asked = [(sizes, refusals(target, spec, sizes)) for sizes in (routed, shared)]
    layers = {"prefix": "first", "ends": "first, last"}.get(target.dense_layers, target.dense_layers)
    reasons = source_refusals(target, spec) or [reason for _, found in asked for reason in found]
    refused = [sizes for sizes, found in asked if found]
    return TargetReport(
        target.name,
        routed=not asked[0][1],
        shared=not asked[1][1],
        dense_layers="none" if len(refused) == len(asked) else layers,
        why_not=tuple(dict.fromkeys(reasons)),
        nearest=_nearest(refused[0], spec) if refused else "",
        runs={} if source_refusals(target, spec) else engine_refusals(target, spec, shared if asked[0][1] else routed),
    )


def _nearest(sizes: MoeSizes, spec: DenseSpec) -> str:
    return next(name for name in candidates(spec) if not refusals(MOE_TARGETS[name], spec, sizes))
