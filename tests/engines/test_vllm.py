"""vllm on small MoEs whose experts differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engines.models import check_difference_is_found, check_equal, moe

pytestmark = pytest.mark.slow
ENGINE = "vllm"


@pytest.mark.parametrize(
    ("source", "target"), [("llama_untied", "mixtral"), ("qwen3", "qwen3_moe"), ("qwen3_mixed", "generic")]
)
def test_equal_to_transformers(source: str, target: str) -> None:
    check_equal(ENGINE, moe(source, target))


def test_a_wrong_theta_is_found(tmp_path: Path) -> None:
    check_difference_is_found(ENGINE, moe("llama_untied", "mixtral"), tmp_path)
