"""A claim about fp32 is measured in fp32, whatever a process has allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, moe_of, save
from torch.nn.modules.module import register_module_forward_hook

from smolmoe.verification.precision import full_precision
from smolmoe.verification.verify import verify


@pytest.fixture
def tf32() -> Iterator[Any]:
    """TF32 is allowed in the matrix products of CUDA."""
    backend: Any = torch.backends.cuda.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    yield backend
    backend.fp32_precision = before


def test_within_it_nothing_is_rounded_and_afterwards_it_is_as_before(tf32: Any) -> None:
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    with full_precision():
        assert tf32.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
    assert tf32.fp32_precision == "tf32"
    assert torch.backends.cudnn.conv.fp32_precision == convolutions  # type: ignore[attr-defined]


def test_both_models_are_verified_in_it(tf32: Any, tmp_path: Path) -> None:
    dense = dense_llama()
    folders = save(dense, tmp_path / "dense"), save(moe_of(dense, "mixtral"), tmp_path / "moe")
    seen: set[tuple[str, str]] = set()

    def note(module: torch.nn.Module, *_: Any) -> None:
        seen.add((type(module).__name__, tf32.fp32_precision))

    handle = register_module_forward_hook(note)
    try:
        verify(*folders, sequences=2, length=16, new_tokens=2)
    finally:
        handle.remove()
    assert {"LlamaMLP", "MixtralExperts"} <= {name for name, _ in seen}
    assert {setting for _, setting in seen} == {"ieee"}
    assert tf32.fp32_precision == "tf32"
