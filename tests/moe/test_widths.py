"""Experts of widths that torch's grouped product refuses, which is what transformers computes experts with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import dense_llama, moe_of, save

from smolmoe.moe.loading import Skeleton, load_model
from smolmoe.verification.verify import verify


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A dense model and its MoE in bf16, whose rows of 36 numbers are 72 bytes."""
    dense = dense_llama(intermediate_size=36).to(torch.bfloat16)
    return save(dense, tmp_path / "dense"), save(moe_of(dense, "mixtral").to(torch.bfloat16), tmp_path / "moe")


def test_they_are_loaded_and_verified(folders: tuple[Path, Path]) -> None:
    dense, moe = folders
    model = load_model(moe, dtype=torch.bfloat16)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert model(input_ids=ids).logits.isfinite().all()
        model.set_experts_implementation("grouped_mm")
        with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
            model(input_ids=ids)
    found = verify(dense, moe, sequences=2, length=16, new_tokens=2)
    assert found.half is not None
    assert found.logits.max_abs < 1e-4


def test_others_keep_the_default(folders: tuple[Path, Path]) -> None:
    implementations = [
        Skeleton(folders[1], dtype=dtype).model.config._experts_implementation
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert implementations == ["grouped_mm", "eager"]
