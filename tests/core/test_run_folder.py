"""Folders that a job writes into: a job is not begun in another's folder, and what it did not write stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smolmoe.core.run_folder import begin_folder
from smolmoe.errors import OutputError


def begin(out: Path, asked: dict[str, Any], **options: Any) -> None:
    begin_folder(out, asked, what="a run", record="settings.json", made=("model",), finished="summary.json", **options)


def test_the_same_settings_continue_and_others_are_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin(out, {"seed": 1, "steps": 10, "sizes": (2, 3)})
    (out / "model").mkdir()
    begin(out, {"seed": 1, "steps": 10, "sizes": (2, 3)})
    with pytest.raises(OutputError, match=r"other settings \(steps: 10 there, 20 here\).*overwrite=True"):
        begin(out, {"seed": 1, "steps": 20, "sizes": (2, 3)})
    assert (out / "model").is_dir()
    begin(out, {"seed": 1, "steps": 20, "sizes": (2, 3)}, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["settings.json"]


def test_a_job_that_is_not_resumed_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, {"seed": 1}, resume=False)
    with pytest.raises(OutputError, match=r"contains a run \(unfinished\).*resume=True"):
        begin(tmp_path, {"seed": 1}, resume=False)
    (tmp_path / "summary.json").touch()
    with pytest.raises(OutputError, match=r"contains a run \(finished\)"):
        begin(tmp_path, {"seed": 1}, resume=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(OutputError, match="something other than a run"):
        begin(tmp_path, {}, overwrite=overwrite)
    with pytest.raises(OutputError, match="something other than a run"):
        begin(tmp_path / "thesis.txt", {}, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_what_a_killed_job_left_unfinished_is_removed(tmp_path: Path) -> None:
    begin(tmp_path, {})
    (tmp_path / ".model.partial").mkdir()
    begin(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
