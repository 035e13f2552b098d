"""The engines by name, and what each needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

from smolmoe.errors import RequestError

EngineName = Literal["transformers", "vllm", "mlx", "llama.cpp", "openvino"]
ENGINES: tuple[str, ...] = get_args(EngineName)


def runner_of(engine: str) -> ModuleType:
    """The engine's file in `runners`.

    Raises:
        RequestError: no such engine.
    """
    if engine not in ENGINES:
        raise RequestError("no such engine.", field="engine", value=engine, fix=f"Use one of {', '.join(ENGINES)}.")
    return import_module(f"smolmoe.engines.runners.{engine.replace('.', '_')}")
