"""What a model folder may hold when it is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolmoe.core.model_folder import check_replaceable
from smolmoe.errors import OutputError


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [(".README.md.partial", True), ("README.md", True), (".notes.partial", False), ("x.txt", False)],
)
def test_a_killed_write_is_in_nobodys_way(name: str, is_ours: bool, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors", name):
        (tmp_path / file).write_text("{}")
    if is_ours:
        check_replaceable(tmp_path, overwrite=True)
        return
    with pytest.raises(OutputError, match="would be lost"):
        check_replaceable(tmp_path, overwrite=True)
