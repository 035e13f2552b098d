"""What a plan promises about the files, per dtype: derived from the program before any weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from smolmoe.core.claim import Claim
from smolmoe.families import DenseSpec, MoeTarget
from smolmoe.families.fit import adaptation
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.request import Layout
from smolmoe.surgery.tensors.diversify import WAYS
from smolmoe.surgery.tensors.program import OutTensor

# Rounding to nearest errs by at most half a unit in the last place; if uniform, the RMS is sqrt(1/3) of that.
ROUNDING = {"bfloat16": 2.0**-9 / math.sqrt(3), "float16": 2.0**-12 / math.sqrt(3)}


def make_claim(
    recipe: UpcycleRecipe, spec: DenseSpec, target: MoeTarget, layout: Layout, tensors: tuple[OutTensor, ...]
) -> Claim:
    """The claim that a program supports. Errors of "deviates" are filled in by `predict`, which needs the weights."""
    dtypes = _per_dtype(layout, target)
    limits = adaptation(spec, target).limits
    if recipe.expert:
        return Claim("none", " ".join((_merge_reason(recipe), *limits)), dtypes, layout.granularity)
    deviations = [] if recipe.shared == "residual" else list(_deviations(recipe, layout))
    if deviations:
        said = "The error is predicted from the dense model."
        return Claim("deviates", " ".join((*deviations, said, *limits)), dtypes, layout.granularity)
    rounded = [tensor for tensor in tensors if _rounds(tensor)]
    if rounded:
        experts = {tensor.dtype for tensor in rounded if tensor.role != "kept"}
        error = max((ROUNDING[dtype] for dtype in experts), default=0.0)
        return Claim(
            "rounded",
            " ".join((_rounded_reason(rounded, spec, layout), *limits)),
            dtypes,
            layout.granularity,
            predicted_ffn_error=tuple(error if i in layout.moe_layers else None for i in range(spec.layers)),
        )
    return Claim(
        "exact",
        " ".join((_exact_reason(recipe, layout) + _epsilon(recipe, target), *limits)),
        dtypes,
        layout.granularity,
    )


def _deviations(recipe: UpcycleRecipe, layout: Layout) -> Iterator[str]:
    """What in the request changes the function, one sentence each."""
    if recipe.diversify != "none":
        yield WAYS[recipe.diversify].reason(recipe)
    if layout.parts > 1 and recipe.subsets != "groups":
        times = f"{layout.top_k / layout.parts:g} times"
        origin = (
            "sampled for it alone" if recipe.subsets == "random" else f"which every {layout.parts} experts share out"
        )
        yield (
            f"Each expert holds a random 1/{layout.parts} of {layout.routed_width} neurons, {origin}, and is chosen "
            f"alone, so a token gets each neuron {'once' if times == '1 times' else times} on average, not exactly."
        )
    if layout.gate_scale is not None and recipe.router != "zero":
        yield (
            f"Gates are {layout.gate_scale:g} x sigmoid(logit): {layout.gate:g} at a logit of 0, but the router's rows "
            "give other logits."
        )


def _rounds(tensor: OutTensor) -> bool:
    """Scaling by a power of two is exact in every float format; adding a constant is not."""
    inexact = any(
        block.reads and (block.offset or block.centred is not None or math.frexp(block.scale)[0] != 0.5)
        for block in tensor.blocks
    )
    return tensor.dtype in ROUNDING and inexact


def _rounded_reason(rounded: list[OutTensor], spec: DenseSpec, layout: Layout) -> str:
    dtypes = ", ".join(sorted({tensor.dtype for tensor in rounded}))
    kept = sorted({_place(t.name) for t in rounded if t.role == "kept" and any(b.centred is None for b in t.blocks)})
    said = []
    if any(block.centred is not None for tensor in rounded for block in tensor.blocks):
        said.append(f"What is added to the residual stream is centred and rounded to {dtypes} again.")
    if any(math.frexp(block.scale)[0] != 0.5 for tensor in rounded if tensor.role != "kept" for block in tensor.blocks):
        said.append(
            f"Down projections are scaled by {layout.granularity}, not a power of two, and rounded to {dtypes} again. "
            "float32 files, or a granularity of 2, 4 or 8, would be exact."
        )
    if kept:
        said.append(
            f"To fit the class, {', '.join(kept)} are changed by a constant and rounded to {dtypes} again. "
            "float32 files would be exact."
        )
    return " ".join(said)


def _place(name: str) -> str:
    """A tensor's name without the layer it is in."""
    return re.sub(r"^.*\.\d+\.|^model\.", "", name).removesuffix(".weight")


def _per_dtype(layout: Layout, target: MoeTarget) -> dict[str, str]:
    low = "equal up to the dtype's own rounding noise (the dense model in it, against itself in float32)"
    if layout.granularity > 1 and target.scoring == "softmax" and layout.gate_scale is None:
        low += (
            "; routers of this class compute logits in it, where groups can tie and a token can get parts of two groups"
            " (0.2-0.5% of tokens have been seen)"
        )
    return {"float32": "equal up to the order of summation", "bfloat16": low, "float16": low}


def _exact_reason(recipe: UpcycleRecipe, layout: Layout) -> str:
    if recipe.shared == "residual":
        return "The shared expert is the dense FFN and routed down projections are zero."
    experts = (
        "copies of the FFN"
        if layout.granularity == 1
        else f"shards of 1/{layout.granularity}, chosen in whole groups, down scaled by {layout.granularity}"
    )
    gates = "The chosen gates sum to 1"
    if layout.gate_scale is not None:
        gates = f"With a zero router each chosen gate is {layout.gate_scale:g} x sigmoid(0) = {layout.gate:g}"
    routed = f"{gates} and the routed experts are {experts}"
    if recipe.shared == "full":
        return f"{routed}; shared and routed output are each weighted by one half."
    if recipe.shared != "none":
        return f"{routed} for the neurons that the shared expert does not hold."
    return f"{routed}."


def _epsilon(recipe: UpcycleRecipe, target: MoeTarget) -> str:
    if not target.gate_epsilon or recipe.shared == "residual" or recipe.gates == "independent":
        return ""
    return (
        f" The class adds {target.gate_epsilon:g} to the sum S of the chosen scores (about K / 2 at the start), so the "
        f"gates sum to 1 up to a relative error of {target.gate_epsilon:g} / S."
    )


def _merge_reason(recipe: UpcycleRecipe) -> str:
    rest = "averaged over the specialists" if recipe.attention == "average" else "from the base"
    return (
        f"Experts are the FFNs of {', '.join(recipe.expert)}; everything else is {rest}. "
        "A mixture of different models equals no single model, so it is measured, not predicted."
    )
