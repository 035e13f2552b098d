"""smolmoe: convert a dense language model into a Mixture-of-Experts, train it, and verify the result by measurement."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smolmoe.errors import SmolmoeError
    from smolmoe.inference.decoding import fast_decoding
    from smolmoe.inference.expert_choice import route_prompt
    from smolmoe.moe import register
    from smolmoe.recipe import UpcycleRecipe
    from smolmoe.verbs.convert import add_expert, extract, import_model, inspect, merge_experts, prune, upcycle
    from smolmoe.verbs.measure import bench, compare, score_corrections, sweep, verify
    from smolmoe.verbs.ship import export, push, report
    from smolmoe.verbs.train import (
        align,
        copy_recipe,
        cpo,
        distill,
        dpo,
        fetch,
        make_pairs,
        quickstart,
        recipes,
        run,
        select,
        sft,
        teach,
        train,
    )
    from smolmoe.verbs.understand import doctor, generate, probe, route, score_data

# Imported on first use: `import smolmoe` costs nothing, and the recipes never need torch.
_NAMES = {
    "errors": ("SmolmoeError",),
    "inference.decoding": ("fast_decoding",),
    "inference.expert_choice": ("route_prompt",),
    "moe": ("register",),
    "recipe": ("UpcycleRecipe",),
    "verbs.convert": ("add_expert", "extract", "import_model", "inspect", "merge_experts", "prune", "upcycle"),
    "verbs.measure": ("bench", "compare", "score_corrections", "sweep", "verify"),
    "verbs.ship": ("export", "push", "report"),
    "verbs.train": (
        "align",
        "copy_recipe",
        "cpo",
        "distill",
        "dpo",
        "fetch",
        "make_pairs",
        "quickstart",
        "recipes",
        "run",
        "select",
        "sft",
        "teach",
        "train",
    ),
    "verbs.understand": ("doctor", "generate", "probe", "route", "score_data"),
}
_HOME = {name: f"smolmoe.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "SmolmoeError",
    "UpcycleRecipe",
    "add_expert",
    "align",
    "bench",
    "compare",
    "copy_recipe",
    "cpo",
    "distill",
    "doctor",
    "dpo",
    "export",
    "extract",
    "fast_decoding",
    "fetch",
    "generate",
    "import_model",
    "inspect",
    "make_pairs",
    "merge_experts",
    "probe",
    "prune",
    "push",
    "quickstart",
    "recipes",
    "register",
    "report",
    "route",
    "route_prompt",
    "run",
    "score_corrections",
    "score_data",
    "select",
    "sft",
    "sweep",
    "teach",
    "train",
    "upcycle",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smolmoe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
