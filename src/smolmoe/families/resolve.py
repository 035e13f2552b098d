"""Which MoE class expresses a request exactly, and for each other class the reason and the nearest class."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from smolmoe.errors import RequestError, TargetError
from smolmoe.families import MOE_TARGETS
from smolmoe.families.engines import ENGINES, engine_name, reasons_against
from smolmoe.families.fit import GENERIC, adaptation, settings
from smolmoe.families.types import DenseSpec, MoeSizes, MoeTarget


def candidates(spec: DenseSpec) -> tuple[str, ...]:
    """Candidate targets, the preferred first: the family's native classes, then the generic model."""
    native = spec.family.targets if spec.family and not spec.mlp.bias else ()
    return (*native, GENERIC)


def refusals(target: MoeTarget, spec: DenseSpec, sizes: MoeSizes) -> list[str]:
    """Why `target` cannot express this source in these sizes exactly; empty if it can."""
    if target.name == GENERIC:
        return []
    return [*source_refusals(target, spec), *_request_refusals(target, spec, sizes)]


def source_refusals(target: MoeTarget, spec: DenseSpec) -> list[str]:
    """Why `target` cannot carry this source's attention, norms or FFN, whatever is requested."""
    if target.name == GENERIC:
        return []
    if spec.family is None or target.name not in spec.family.targets:
        return [f"its attention or norms differ from {spec.model_type}'s"]
    reasons = []
    if spec.mlp.bias:
        reasons.append("its experts have no biases, but the source's FFN has")
    if spec.attention_bias not in target.attention_bias:
        reasons.append(f"it cannot carry biases on {spec.attention_bias} of the attention")
    windows = set(spec.windows)
    if windows != {None} and target.windows == "none":
        reasons.append("it has no sliding window")
    elif len(windows) > 1 and target.windows == "global":
        reasons.append("it has one sliding window for all layers, but the source mixes windowed and full layers")
    if not all(spec.rotated) and not target.unrotated:
        reasons.append("it has no layers without rotary positions, but the source has")
    if spec.rotary_share != 1 and not target.partial_rotary:
        reasons.append(f"it rotates all of each head, but the source rotates {spec.rotary_share:.0%}")
    if spec.family.multipliers and not target.multipliers:
        reasons.append("it has no multipliers of embeddings, residuals, attention and logits")
    return [*reasons, *adaptation(spec, target).refusals]


def _request_refusals(target: MoeTarget, spec: DenseSpec, sizes: MoeSizes) -> list[str]:
    reasons = []
    if sizes.shared_width and target.shared == "never":
        reasons.append("it has no shared expert")
    if not sizes.shared_width and target.shared == "required":
        reasons.append("it always has a shared expert (shared: full, residual or a width)")
    if sizes.shared_width and target.shared_multiple and sizes.shared_width % sizes.width:
        reasons.append(
            f"its shared width must be a multiple of the expert width {sizes.width}, not {sizes.shared_width}"
        )
    if sizes.shared_width and target.shared_same and sizes.shared_width != sizes.width:
        reasons.append(f"its shared width is the expert width {sizes.width}, not {sizes.shared_width}")
    if sizes.gate_scale is not None and not target.independent_gates:
        reasons.append("its gates always sum to 1 (gates: normalised)")
    if sizes.experts < target.min_experts:
        reasons.append(f"its router needs at least {target.min_experts} experts")
    if sizes.dense_layers and target.dense_layers == "none":
        reasons.append("it cannot keep chosen layers dense")
    elif target.dense_layers == "prefix" and sizes.dense_layers != list(range(len(sizes.dense_layers))):
        reasons.append("it can keep only the first layers dense")
    elif target.dense_layers == "ends" and not _contiguous(spec, sizes):
        reasons.append("it can keep only the first and the last layers dense")
    return reasons


def _contiguous(spec: DenseSpec, sizes: MoeSizes) -> bool:
    moe = [i for i in range(spec.layers) if i not in sizes.dense_layers]
    return moe == list(range(moe[0], moe[-1] + 1))


def resolve(name: str, spec: DenseSpec, sizes: MoeSizes, engines: Sequence[str] = ()) -> MoeTarget:
    """The target of that name, or with "auto" the first native class that expresses the request, else the generic one.

    Args:
        engines: it must run in all of these.

    Raises:
        RequestError: no such target, or no such engine.
        TargetError: the named target cannot express it, or some engine cannot run it; states why, and which one can.
    """
    wanted = [engine_name(engine) for engine in engines]
    able = [MOE_TARGETS[n] for n in candidates(spec) if not refusals(MOE_TARGETS[n], spec, sizes)]
    served = [target for target in able if not any(engine_refusals(target, spec, sizes, wanted).values())]
    if name == "auto":
        if not served:
            raise _served_by_none(able, spec, sizes, wanted)
        return served[0]
    if name not in MOE_TARGETS:
        near = difflib.get_close_matches(name, MOE_TARGETS, n=1)
        known = f"Did you mean {near[0]!r}?" if near else f"Known: auto, {', '.join(MOE_TARGETS)}."
        raise RequestError("no such target.", field="target", value=name, fix=known)
    target = MOE_TARGETS[name]
    reasons = refusals(target, spec, sizes)
    if reasons:
        raise TargetError(
            f"{target.name} cannot express this: {'; '.join(reasons)}.",
            field="target",
            value=name,
            fix=f"Use `target={able[0].name!r}` (or auto), which can.",
        )
    if target not in served:
        why = _said(engine_refusals(target, spec, sizes, wanted))
        fix = f"Use `target={served[0].name!r}` (or auto), which does." if served else None
        raise TargetError(
            f"{target.name} does not run there: {why}.", field="runs_in", value=", ".join(wanted), fix=fix
        )
    return target


def engine_refusals(
    target: MoeTarget, spec: DenseSpec, sizes: MoeSizes, engines: Sequence[str] = tuple(ENGINES)
) -> dict[str, list[str]]:
    """For each engine, why it cannot compute this source as that class."""
    config = {**settings(spec, target, sizes), "model_type": target.name}
    return {engine: reasons_against(engine, config) for engine in engines}


def _served_by_none(able: Sequence[MoeTarget], spec: DenseSpec, sizes: MoeSizes, engines: Sequence[str]) -> TargetError:
    said = "; ".join(f"{target.name}: {_said(engine_refusals(target, spec, sizes, engines))}" for target in able)
    return TargetError(
        f"no class that expresses this runs in all of them ({said}).",
        field="runs_in",
        value=", ".join(engines),
        fix="Name fewer engines, or ask for less (a shared expert or dense layers limit the choice of class).",
    )


def _said(reasons: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{engine}: {' and '.join(why)}" for engine, why in reasons.items() if why)
