"""Every test of this folder needs a GPU: `make test-gpu`.

SMOLMOE_TEST_DEVICE=cpu runs them there, which tests the tests.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEVICE = os.environ.get("SMOLMOE_TEST_DEVICE", "cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> str:
    """cuda, or what the environment says."""
    import torch

    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return DEVICE
