"""What a plan promises of the files, per dtype, said before a weight is read and measured afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from smolmoe.families import DenseSpec, MoeTarget
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.program import OutTensor
from smolmoe.surgery.request import Layout

Kind = Literal["exact", "rounded", "deviates", "none"]
# Rounding to nearest errs by at most half a unit in the last place, uniformly spread: sqrt(1/3) of that on average.
_ROUNDING = {"bfloat16": 2.0**-9 / math.sqrt(3), "float16": 2.0**-12 / math.sqrt(3)}


@dataclass(frozen=True)
class Claim:
    """The expectation.

    Attributes:
        kind: "exact": the dense model's function, up to the order in which numbers are added; "rounded": the same
            but for one rounding of scaled weights to the files' dtype; "deviates": by design, by a predicted amount;
            "none": different by design with nothing to predict it from (merges).
        reason: why, in one or two sentences.
        tolerance: exact: largest |logit difference| over the largest |logit|, computing in fp32.
        predicted_ffn_error: per layer, |moe_ffn(x) - ffn(x)| / |ffn(x)| on the dense model's own FFN inputs; None
            where the layer stays dense, or nothing is predicted.
        band: measured / predicted must lie within it.
        granularity: G, so that a reader of the files knows which experts belong together.
        dtypes: what to expect when computing in each dtype.
    """

    kind: Kind
    reason: str
    dtypes: dict[str, str]
    granularity: int = 1
    tolerance: float = 1e-5
    predicted_ffn_error: tuple[float | None, ...] | None = None
    band: tuple[float, float] = (0.75, 1.33)

    def with_prediction(self, errors: Iterable[float | None]) -> Claim:
        return replace(self, predicted_ffn_error=tuple(errors))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_claim(
    recipe: UpcycleRecipe, spec: DenseSpec, target: MoeTarget, layout: Layout, tensors: tuple[OutTensor, ...]
) -> Claim:
    """What the program amounts to. Errors of "deviates" are filled in by `predict`, which needs the weights."""
    dtypes = _per_dtype(layout, target)
    if recipe.expert:
        return Claim("none", _merge_reason(recipe), dtypes, layout.granularity)
    perturbed = recipe.diversify != "none" and recipe.shared != "residual"
    if perturbed:
        return Claim("deviates", _deviation_reason(recipe), dtypes, layout.granularity)
    rounded = {tensor.dtype for tensor in tensors if _rounds(tensor)}
    if rounded:
        error = max(_ROUNDING[dtype] for dtype in rounded)
        return Claim(
            "rounded",
            f"Down projections are scaled by {layout.granularity}, not a power of two, and rounded to "
            f"{', '.join(sorted(rounded))} again. Files in float32, or a granularity of 2, 4 or 8, would be exact.",
            dtypes,
            layout.granularity,
            predicted_ffn_error=tuple(error if i in layout.moe_layers else None for i in range(spec.layers)),
        )
    return Claim("exact", _exact_reason(recipe, layout), dtypes, layout.granularity)


def _rounds(tensor: OutTensor) -> bool:
    """Scaling by a power of two is exact in every float format."""
    inexact = any(block.reads and math.frexp(block.scale)[0] != 0.5 for block in tensor.blocks)
    return tensor.dtype in _ROUNDING and inexact


def _per_dtype(layout: Layout, target: MoeTarget) -> dict[str, str]:
    low = "equal up to the dtype's own rounding noise (the dense model in it, against itself in float32)"
    if layout.granularity > 1 and target.scoring == "softmax":
        low += (
            "; routers of this class compute logits in it, where groups can tie and a token can get parts of two groups"
            " (0.2-0.5% of tokens have been seen)"
        )
    return {"float32": "equal up to the order of additions", "bfloat16": low, "float16": low}


def _exact_reason(recipe: UpcycleRecipe, layout: Layout) -> str:
    if recipe.shared == "residual":
        return "The shared expert is the dense FFN and routed down projections are zero."
    experts = (
        "copies of the FFN"
        if layout.granularity == 1
        else (f"shards of 1/{layout.granularity}, chosen in whole groups, down scaled by {layout.granularity}")
    )
    routed = f"The chosen gates sum to 1 and the routed experts are {experts}"
    if recipe.shared == "full":
        return f"{routed}; shared and routed output count one half each."
    if recipe.shared != "none":
        return f"{routed} for the neurons that the shared expert does not hold."
    return f"{routed}."


def _deviation_reason(recipe: UpcycleRecipe) -> str:
    if recipe.diversify == "noise":
        return (
            f"N(0, {recipe.noise_std:g}) is added to every expert weight; the error is predicted from the dense model."
        )
    which = "independently for gate, up and down" if recipe.drop_independent else "the same for gate, up and down"
    return (
        f"Drop-Upcycling draws {recipe.drop_ratio:.0%} of each expert's neurons anew, {which}; the error is predicted "
        "from the dense model."
    )


def _merge_reason(recipe: UpcycleRecipe) -> str:
    rest = "averaged over the specialists" if recipe.attention == "average" else "from the base"
    return (
        f"Experts are the FFNs of {', '.join(recipe.expert)}; everything else is {rest}. "
        "A mixture of different models is no one's function, so it is measured and nothing is predicted."
    )
