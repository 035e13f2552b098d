"""smolmoe: convert a dense causal language model to a Mixture-of-Experts, and verify the result by measurement."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from smolmoe.demo.run import quickstart
    from smolmoe.errors import SmolmoeError
    from smolmoe.evaluation.bench.run import bench
    from smolmoe.evaluation.compare.run import compare
    from smolmoe.hub.push import push
    from smolmoe.inference.decoding import fast_decoding
    from smolmoe.inference.expert_choice import route_prompt
    from smolmoe.inference.generate import generate
    from smolmoe.moe import register
    from smolmoe.recipe import UpcycleRecipe
    from smolmoe.scaling.run import sweep
    from smolmoe.surgery.experts.run import extract
    from smolmoe.surgery.export.run import export
    from smolmoe.surgery.inspection import inspect
    from smolmoe.surgery.run import upcycle
    from smolmoe.verification.doctor import doctor
    from smolmoe.verification.verify import verify

# Imported on first use: `import smolmoe` costs nothing, and the recipes never need torch.
_HOME = {
    "SmolmoeError": "smolmoe.errors",
    "UpcycleRecipe": "smolmoe.recipe",
    "bench": "smolmoe.evaluation.bench.run",
    "compare": "smolmoe.evaluation.compare.run",
    "doctor": "smolmoe.verification.doctor",
    "export": "smolmoe.surgery.export.run",
    "extract": "smolmoe.surgery.experts.run",
    "fast_decoding": "smolmoe.inference.decoding",
    "generate": "smolmoe.inference.generate",
    "inspect": "smolmoe.surgery.inspection",
    "push": "smolmoe.hub.push",
    "quickstart": "smolmoe.demo.run",
    "register": "smolmoe.moe",
    "route_prompt": "smolmoe.inference.expert_choice",
    "sweep": "smolmoe.scaling.run",
    "upcycle": "smolmoe.surgery.run",
    "verify": "smolmoe.verification.verify",
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
