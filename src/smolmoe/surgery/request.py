"""From a recipe and a source to sizes: every number of the conversion is checked, every error has a fix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from smolmoe.errors import RequestError
from smolmoe.families import DenseSpec
from smolmoe.families.types import MoeSizes
from smolmoe.recipe import UpcycleRecipe
from smolmoe.surgery.sources import Source
from smolmoe.surgery.tensors.diversify import WAYS


@dataclass(frozen=True)
class Layout:
    """The sizes of a request, checked against the source.

    Attributes:
        experts, top_k: E, K.
        parts: the routed experts hold 1/parts of the routed neurons each.
        granularity: G, experts that are chosen together: `parts`, or 1 where experts are chosen one by one.
        width: neurons I of one routed expert.
        routed_width: neurons of the dense FFN that the routed experts are made from.
        shared_width: neurons of the shared expert; 0 without a shared expert.
        moe_layers: indices of the layers that become MoE layers.
        gate_scale: gates are this times the sigmoid of their logits; None: they are renormalised to sum to 1.
        shared_neurons: by MoE layer, the neurons of the shared expert in ascending order; None: the first ones.
    """

    experts: int
    top_k: int
    parts: int
    granularity: int
    width: int
    routed_width: int
    shared_width: int
    moe_layers: tuple[int, ...]
    gate_scale: float | None = None
    shared_neurons: Mapping[int, tuple[int, ...]] | None = None

    @property
    def gate(self) -> float:
        """The gate of a chosen expert where all logits are zero; with renormalised gates, their mean."""
        return 1 / self.top_k if self.gate_scale is None else self.gate_scale / 2

    def sizes(self, spec: DenseSpec) -> MoeSizes:
        dense = [i for i in range(spec.layers) if i not in self.moe_layers]
        return MoeSizes(self.experts, self.top_k, self.width, self.shared_width, spec.ffn_size, dense, self.gate_scale)


def in_numbers(recipe: UpcycleRecipe, spec: DenseSpec) -> UpcycleRecipe:
    """The recipe with a shared width where it says half of the neurons."""
    return recipe.model_copy(update={"shared": spec.ffn_size // 2}) if recipe.shared == "half" else recipe


def lay_out(recipe: UpcycleRecipe, spec: DenseSpec) -> Layout:
    """Check a recipe against its source and compute the sizes.

    Raises:
        RequestError: naming the option, its value and what would work.
    """
    _check_unused(recipe)
    experts = _experts(recipe)
    _check_counts(recipe, experts)
    shared_width = _shared_width(recipe, spec)
    start = shared_width if isinstance(recipe.shared, int) else 0
    routed = spec.ffn_size - start
    g = recipe.granularity
    if routed % g:
        divisors = [d for d in range(1, 65) if routed % d == 0]
        raise RequestError(
            f"does not divide the {routed} neurons that the routed experts are made from.",
            field="granularity",
            value=g,
            fix=f"Use one of {', '.join(map(str, divisors))}" + (" or another shared width." if start else "."),
        )
    _check_router(recipe)
    _check_diversify(recipe)
    return Layout(
        experts=experts,
        top_k=recipe.top_k,
        parts=g,
        granularity=g if recipe.subsets == "groups" else 1,
        width=routed // g,
        routed_width=routed,
        shared_width=shared_width,
        moe_layers=parse_layers(recipe.layers, spec.layers),
        gate_scale=_gate_scale(recipe),
    )


def _gate_scale(recipe: UpcycleRecipe) -> float | None:
    """The factor of independent gates that makes the routed experts count as much as renormalised ones do.

    At zero logits K gates of scale / 2 each give every neuron the weight 1 (1/2 with a full shared expert): a token
    gets K / G copies of it.
    """
    if recipe.gates == "normalised":
        return None
    return 2 * recipe.granularity / recipe.top_k * (0.5 if recipe.shared == "full" else 1.0)


def check_kernel(recipe: UpcycleRecipe, layout: Layout, base: Source) -> None:
    """Reject expert widths that stock transformers cannot run by default.

    Its default experts implementation is torch's grouped_mm, which needs rows of a multiple of 16 bytes.

    Raises:
        RequestError
    """
    dtype = recipe.dtype or base.tensors[base.slot_name(layout.moe_layers[0], base.spec.mlp.up)].dtype
    multiple = 4 if dtype == "float32" else 8
    if layout.width % multiple == 0:
        return
    good = [g for g in range(1, 65) if layout.routed_width % (g * multiple) == 0]
    ways = [f"`granularity={', '.join(map(str, good))}`"] if good else []
    ways += ["`dtype='float32'`"] if multiple == 8 and layout.width % 4 == 0 else []
    ways += ["another shared width"] if isinstance(recipe.shared, int) else []
    raise RequestError(
        f"experts of width {layout.width} in {dtype} cannot run: transformers' kernel needs a multiple of {multiple}.",
        field="granularity",
        value=recipe.granularity,
        fix=f"Use {' or '.join(ways)}." if ways else None,
    )


def _check_unused(recipe: UpcycleRecipe) -> None:
    needs = {
        **{
            field: (recipe.diversify == name, f"`diversify='{name}'`")
            for name, way in WAYS.items()
            for field in way.settings
        },
        "subsets": (recipe.granularity > 1, "`granularity=2`"),
        "shared_by": (isinstance(recipe.shared, int), "`shared=WIDTH`"),
        "calibration": (recipe.shared_by != "first", "`shared_by='importance'`"),
        "router_std": (recipe.router == "random", "`router='random'`"),
        "router_data": (recipe.router == "domains", "`router='domains'`"),
        "router_centroids": (recipe.router == "domains", "`router='domains'`"),
        "attention": (bool(recipe.expert), "`expert={'NAME': 'PATH'}`"),
    }
    for field, (used, fix) in needs.items():
        if field in recipe.model_fields_set and not used:
            raise RequestError(
                "is set, but nothing in this request uses it.",
                field=field,
                value=getattr(recipe, field),
                fix=f"Add {fix}, or leave it out.",
            )


def _experts(recipe: UpcycleRecipe) -> int:
    if not recipe.expert:
        return recipe.experts
    whole = len(recipe.expert) * recipe.granularity
    if "experts" not in recipe.model_fields_set:
        return whole
    if recipe.experts % whole:
        raise RequestError(
            f"{len(recipe.expert)} specialists at granularity {recipe.granularity} need a multiple of {whole} experts.",
            field="experts",
            value=recipe.experts,
            fix=f"Use `experts={whole}`, or leave it out.",
        )
    return recipe.experts


def _check_counts(recipe: UpcycleRecipe, experts: int) -> None:
    k, g = recipe.top_k, recipe.granularity
    for field, value in (("experts", experts), ("top_k", k), ("granularity", g)):
        if value < 1:
            raise RequestError("must be at least 1.", field=field, value=value)
    if k > experts:
        raise RequestError(
            f"more experts per token than there are experts ({experts}).",
            field="top_k",
            value=k,
            fix=f"Use at most {experts}.",
        )
    if experts % g and recipe.subsets != "random":
        raise RequestError(
            f"does not divide the {experts} experts into whole groups.",
            field="granularity",
            value=g,
            fix=f"Use `experts={-(-experts // g) * g}`.",
        )
    if k % g and recipe.subsets == "groups" and recipe.shared != "residual":
        raise RequestError(
            f"a token must get whole groups of {g} experts, so K must be a multiple of it (K is {k}).",
            field="granularity",
            value=g,
            fix=f"Use `top_k={max(1, round(k / g)) * g}`, or `subsets='complementary'`.",
        )


def _shared_width(recipe: UpcycleRecipe, spec: DenseSpec) -> int:
    if recipe.shared == "none":
        return 0
    if isinstance(recipe.shared, str):
        if recipe.shared == "residual" and recipe.expert:
            raise RequestError(
                "residual zeroes the routed down projections, which discards the specialists' knowledge.",
                field="shared",
                value="residual",
                fix="Use `shared='full'` or none with `expert`.",
            )
        return spec.ffn_size
    if not 0 < recipe.shared < spec.ffn_size:
        raise RequestError(
            f"a shared width must lie between 1 and {spec.ffn_size - 1} (the FFN has {spec.ffn_size} neurons).",
            field="shared",
            value=recipe.shared,
            fix="Use `shared='full'` for all of them, none for no shared expert.",
        )
    return recipe.shared


def _check_router(recipe: UpcycleRecipe) -> None:
    grouped = recipe.granularity > 1 and recipe.subsets == "groups"
    if recipe.router == "zero" and grouped and recipe.shared != "residual":
        raise RequestError(
            "a zero router ties all experts, so the chosen K are not whole groups and the function is not preserved.",
            field="router",
            value="zero",
            fix="Use `router='random'` or domains with `granularity` above 1.",
        )
    if recipe.router_std is not None and not 0 < recipe.router_std < math.inf:
        raise RequestError(
            "must be positive.", field="router_std", value=recipe.router_std, fix="Use `router='zero'` for zeros."
        )
    if recipe.router == "domains" and recipe.router_data is None:
        raise RequestError(
            "needs text with domains.",
            field="router",
            value="domains",
            fix='Add `router_data=FILE.jsonl` with rows {"text": ..., "domain": ...}.',
        )


def _check_diversify(recipe: UpcycleRecipe) -> None:
    way = WAYS.get(recipe.diversify)
    for field, (valid, said) in way.settings.items() if way else ():
        value = getattr(recipe, field)
        if not valid(value):
            raise RequestError(said, field=field, value=value)


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Layer indices from "all", "2-10" (both ends), "every:2" (1, 3, 5, ...: every second) or "0,3,5".

    Raises:
        RequestError: none of these forms, or a layer that does not exist.
    """
    try:
        if text == "all":
            chosen = list(range(count))
        elif text.startswith("every:"):
            step = int(text.removeprefix("every:"))
            chosen = [i for i in range(count) if (i + 1) % step == 0]
        else:
            chosen = []
            for part in text.split(","):
                first, _, last = part.partition("-")
                chosen += range(int(first), int(last or first) + 1)
    except (ValueError, ZeroDivisionError):
        raise RequestError(
            "not understood.",
            field="layers",
            value=text,
            fix="Use all, a range such as 2-10, every:2, or a list such as 0,3,5.",
        ) from None
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise RequestError(
            f"names no layer, or one that does not exist (the model has layers 0 to {count - 1}).",
            field="layers",
            value=text,
        )
    return tuple(sorted(set(chosen)))
