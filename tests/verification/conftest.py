"""A dense model and a text to measure it on."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import dense_llama, save


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(f"def f_{n}(a): return a + {n}  # the sum of both, as ever" for n in range(30)))
    return file


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save(dense_llama(), tmp_path / "dense")
