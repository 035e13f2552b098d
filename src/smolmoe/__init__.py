"""smolmoe: convert a dense language model into a Mixture-of-Experts, train it, and verify the result by measurement."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smolmoe.data.fetch import fetch
    from smolmoe.errors import SmolmoeError
    from smolmoe.hub.push import push
    from smolmoe.inference.decoding import fast_decoding
    from smolmoe.inference.expert_choice import route, route_prompt
    from smolmoe.moe import register
    from smolmoe.pipeline.quickstart import quickstart
    from smolmoe.pipeline.specialise import init, specialise
    from smolmoe.recipe import UpcycleRecipe
    from smolmoe.recipe.files import copy_recipe, recipes
    from smolmoe.reports.run import report
    from smolmoe.surgery.experts.run import add_expert, extract, merge_experts, prune
    from smolmoe.surgery.export.run import export
    from smolmoe.verbs.convert import import_model, inspect, upcycle
    from smolmoe.verbs.measure import bench, compare, score_corrections, sweep, verify
    from smolmoe.verbs.train import (
        align,
        cpo,
        distill,
        dpo,
        make_pairs,
        run,
        select,
        sft,
        teach,
        train,
    )
    from smolmoe.verbs.understand import chat, doctor, generate, probe, score_data

# Imported on first use: `import smolmoe` costs nothing, and the recipes never need torch.
_NAMES = {
    "errors": ("SmolmoeError",),
    "inference.decoding": ("fast_decoding",),
    "data.fetch": ("fetch",),
    "hub.push": ("push",),
    "inference.expert_choice": ("route", "route_prompt"),
    "moe": ("register",),
    "pipeline.quickstart": ("quickstart",),
    "pipeline.specialise": ("init", "specialise"),
    "recipe": ("UpcycleRecipe",),
    "recipe.files": ("copy_recipe", "recipes"),
    "reports.run": ("report",),
    "surgery.experts.run": ("add_expert", "extract", "merge_experts", "prune"),
    "surgery.export.run": ("export",),
    "verbs.convert": ("import_model", "inspect", "upcycle"),
    "verbs.measure": ("bench", "compare", "score_corrections", "sweep", "verify"),
    "verbs.train": (
        "align",
        "cpo",
        "distill",
        "dpo",
        "make_pairs",
        "run",
        "select",
        "sft",
        "teach",
        "train",
    ),
    "verbs.understand": ("chat", "doctor", "generate", "probe", "score_data"),
}
_HOME = {name: f"smolmoe.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "SmolmoeError",
    "UpcycleRecipe",
    "add_expert",
    "align",
    "bench",
    "chat",
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
    "init",
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
    "specialise",
    "sweep",
    "teach",
    "train",
    "upcycle",
    "verify",
]


def module_of(name: str) -> str:
    """The module that defines a public name."""
    return _HOME[name]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smolmoe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
