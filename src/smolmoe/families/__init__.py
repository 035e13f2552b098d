"""Data about architectures: dense families that can be upcycled, and the MoE classes they can be converted to."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from smolmoe.families import dense, moe
from smolmoe.families.types import DenseFamily, DenseSpec, ExpertNames, MlpLayout, MoeNames, MoeTarget, Slot


def _all(package: ModuleType, name: str) -> Iterator[Any]:
    """The object `name` of every module of a package, in alphabetical order."""
    for module in iter_modules(package.__path__, f"{package.__name__}."):
        yield getattr(import_module(module.name), name)


DENSE_FAMILIES: dict[str, DenseFamily] = {family.model_type: family for family in _all(dense, "FAMILY")}
# The generic model comes last: wherever the first class that can is wanted, a native one goes before it.
MOE_TARGETS: dict[str, MoeTarget] = {
    target.name: target for target in sorted(_all(moe, "TARGET"), key=lambda target: target.name == "generic")
}

__all__ = [
    "DENSE_FAMILIES",
    "MOE_TARGETS",
    "DenseFamily",
    "DenseSpec",
    "ExpertNames",
    "MlpLayout",
    "MoeNames",
    "MoeTarget",
    "Slot",
]
