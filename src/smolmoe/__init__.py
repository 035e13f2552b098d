"""smolmoe: turn a dense causal language model into a Mixture-of-Experts, and prove by measurement what came out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smolmoe.benching.bench import bench
    from smolmoe.comparing import compare
    from smolmoe.demo.run import quickstart
    from smolmoe.errors import SmolmoeError
    from smolmoe.experts import extract
    from smolmoe.exporting import export
    from smolmoe.generation import generate
    from smolmoe.moe import register
    from smolmoe.moe.decoding import fast_decoding
    from smolmoe.proof.doctor import doctor
    from smolmoe.proof.verify import verify
    from smolmoe.pushing import push
    from smolmoe.recipe import UpcycleRecipe
    from smolmoe.secretary import route_prompt
    from smolmoe.surgery.inspection import inspect
    from smolmoe.sweeping.sweep import sweep
    from smolmoe.upcycling import upcycle

# Imported on first use: `import smolmoe` costs nothing, and the recipes never need torch.
_HOME = {
    "SmolmoeError": "smolmoe.errors",
    "UpcycleRecipe": "smolmoe.recipe",
    "bench": "smolmoe.benching.bench",
    "compare": "smolmoe.comparing",
    "doctor": "smolmoe.proof.doctor",
    "export": "smolmoe.exporting",
    "extract": "smolmoe.experts",
    "fast_decoding": "smolmoe.moe.decoding",
    "generate": "smolmoe.generation",
    "inspect": "smolmoe.surgery.inspection",
    "push": "smolmoe.pushing",
    "quickstart": "smolmoe.demo.run",
    "register": "smolmoe.moe",
    "route_prompt": "smolmoe.secretary",
    "sweep": "smolmoe.sweeping.sweep",
    "upcycle": "smolmoe.upcycling",
    "verify": "smolmoe.proof.verify",
}

__all__ = [
    "SmolmoeError",
    "UpcycleRecipe",
    "bench",
    "compare",
    "doctor",
    "export",
    "extract",
    "fast_decoding",
    "generate",
    "inspect",
    "push",
    "quickstart",
    "register",
    "route_prompt",
    "sweep",
    "upcycle",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smolmoe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
