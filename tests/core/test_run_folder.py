"""Run folders: finished stages are kept, other runs are not touched, nothing is half-written."""

from __future__ import annotations

import pytest

from smolmoe.core.run_folder import RunFolder
from smolmoe.errors import OutputError


def test_a_finished_stage_is_not_made_again(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"value": len(calls)}

    for _ in range(2):
        run = RunFolder(tmp_path / "run", {"seed": 1, "sizes": (2, 3)})
        record = run.stage("first", make)
        assert record["value"] == 1
        assert record["wall_seconds"] >= 0
    assert RunFolder(tmp_path / "run", {"seed": 1, "sizes": (2, 3)}, overwrite=True).stage("first", make)["value"] == 2


def test_a_failed_stage_is_made_again(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(KeyboardInterrupt):
        run.stage("first", _interrupted)
    assert run.stage("first", lambda: {"value": 1})["value"] == 1


def _write_half(run):
    with run.folder("model") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt


def _interrupted():
    raise KeyboardInterrupt


def test_other_settings_are_refused_by_name(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1, "steps": 10})
    with pytest.raises(OutputError, match=r"other settings \(steps: 10 there, 20 here\).*overwrite=True"):
        RunFolder(tmp_path / "run", {"seed": 1, "steps": 20})
    RunFolder(tmp_path / "run", {"seed": 1, "steps": 20}, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(OutputError, match="something other than a run"):
        RunFolder(tmp_path, {}, overwrite=overwrite)
    with pytest.raises(OutputError, match="something other than a run"):
        RunFolder(tmp_path / "thesis.txt", {}, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_an_empty_folder_will_do(tmp_path):
    RunFolder(tmp_path, {"seed": 1})
    assert RunFolder(tmp_path, {"seed": 1}).stage("first", lambda: {"value": 1})["value"] == 1


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    run = RunFolder(tmp_path / "run", {})
    with pytest.raises(KeyboardInterrupt):
        _write_half(run)
    assert not (run.path / "model").exists()
    with run.folder("model") as folder:
        (folder / "whole").write_text("x")
        assert not (run.path / "model").exists()
    with run.folder("model") as folder:
        (folder / "other").write_text("x")
    assert [path.name for path in (run.path / "model").iterdir()] == ["other"]
    assert sorted(path.name for path in run.path.iterdir()) == ["model", "settings.json", "stages"]
