"""The families table of the documentation, made from the families themselves."""

from __future__ import annotations

from collections.abc import Sequence

from smolmoe.families import DENSE_FAMILIES, MOE_TARGETS
from smolmoe.families.engines import ENGINES, limits, support
from smolmoe.families.types import MoeTarget


def sources_table() -> str:
    """Markdown: what can be upcycled, and to which native classes."""
    rows = [
        (family.model_type, family.examples, ", ".join(f"`{name}`" for name in family.targets) + ", `generic`")
        for family in DENSE_FAMILIES.values()
    ]
    rows.append(("any other decoder", "GPT-2, Gemma 2, Phi-2, StarCoder2, GPT-NeoX, StableLM", "`generic`"))
    return _markdown(("source", "for example", "becomes (first that expresses the request)"), rows)


def targets_table() -> str:
    """Markdown: what each MoE class can express, and where it runs."""
    rows = [
        (f"`{t.name}`", _shared(t), _layers(t), _windows(t), _router(t), *(runs(engine, t.name) for engine in ENGINES))
        for t in MOE_TARGETS.values()
    ]
    columns = ("target", "shared expert", "layers left dense", "sliding window", "router", *ENGINES)
    return _markdown(columns, rows)


def runs(engine: str, model_type: str) -> str:
    """Whether an engine runs an MoE class, and within which limits."""
    found = support(engine, model_type)
    return "no" if found is None else "; ".join(filter(None, ("yes", limits(found))))


def _shared(target: MoeTarget) -> str:
    if target.shared == "never":
        return "no"
    kind = "behind a sigmoid gate" if target.shared_gated else "ungated"
    width = ", width a multiple of the experts'" if target.shared_multiple else ""
    width = ", of the experts' width" if target.shared_same else width
    return f"{'always' if target.shared == 'required' else 'optional'}, {kind}{width}"


def _layers(target: MoeTarget) -> str:
    said = {"none": "none", "any": "any", "prefix": "the first ones", "ends": "the first and the last ones"}
    return said[target.dense_layers]


def _windows(target: MoeTarget) -> str:
    return {"none": "no", "global": "one for all layers", "layers": "per layer"}[target.windows]


def _router(target: MoeTarget) -> str:
    gates = "renormalised or independent" if target.independent_gates else "renormalised"
    return f"{target.scoring}, {gates}{', selection bias' if target.names.selection_bias else ''}"


def _markdown(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
