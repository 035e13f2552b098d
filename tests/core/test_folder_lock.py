"""One process at a time writes into a folder, whichever command it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.alignment import runs as align_runs
from tests.training.runs import recipe, write_text

from smolmoe.alignment.pairs_run import make_pairs
from smolmoe.alignment.run import align
from smolmoe.core.files import growing
from smolmoe.distillation.run import cache_teacher
from smolmoe.errors import OutputError
from smolmoe.pipeline.quickstart import quickstart
from smolmoe.pipeline.run import run as run_pipeline
from smolmoe.recipe import PairsRecipe, PipelineRecipe, SelectRecipe, parse
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.scaling.run import sweep
from smolmoe.selection.run import run_select
from smolmoe.training.run import train

MESSAGE = "another process is writing there" + (rf" \(process {os.getpid()}\)" if sys.platform == "linux" else "")


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    out = tmp_path / "above" / "run"
    with growing(out):
        with pytest.raises(OutputError, match=MESSAGE), growing(out):
            raise AssertionError
        (out / "mine.txt").write_text("mine")
    with growing(out):
        assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), growing(tmp_path / "above" / "run"):
        raise ValueError("refused")
    assert not any(tmp_path.iterdir())


def test_a_link_and_what_it_leads_to_are_one_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with growing(tmp_path / "run"), pytest.raises(OutputError, match=MESSAGE), growing(tmp_path / "link"):
        raise AssertionError


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from smolmoe.core.files import growing\n"
    code += "with growing(Path(sys.argv[1])): print('held', flush=True); input()"
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], **streams) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process"), growing(tmp_path / "run"):
            raise AssertionError
        child.kill()
    with growing(tmp_path / "run"):
        pass


def _train(folder: Path) -> Any:
    return train(recipe(folder, folder / "absent", out=str(folder / "out")))


def _align(folder: Path) -> Any:
    return align(align_runs.recipe(folder, folder / "absent", "sft", out=str(folder / "out")))


def _pipeline(folder: Path) -> Any:
    stage = {"name": "dense", "train": {"model": {"path": str(folder)}, "data": {"sources": [{"preset": "embedded"}]}}}
    return run_pipeline(parse(PipelineRecipe, {"stages": [stage], "out": str(folder / "out")}))


def _sweep(folder: Path) -> Any:
    values = recipe(folder, folder / "absent")
    values["trainer"] |= {"lr_scheduler_type": "constant"}
    return sweep("a", values, parse(SweepRecipe, {"tokens": [1280, 2560, 5120], "out": str(folder / "out")}))


def _select(folder: Path) -> Any:
    rows = write_text(folder / "rows.jsonl", documents=4)
    asked = {"sources": [{"path": str(rows)}], "budget": 2, "score": "random"}
    return run_select(parse(SelectRecipe, asked), folder / "out")


def _pairs(folder: Path) -> Any:
    return make_pairs(parse(PairsRecipe, {"model": "absent", "data": "absent.jsonl", "out": str(folder / "out")}))


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "train": _train,
    "align": _align,
    "pipeline": _pipeline,
    "sweep": _sweep,
    "select": _select,
    "pairs": _pairs,
    "distill": lambda folder: cache_teacher("absent", "absent.jsonl", folder / "out", device="cpu"),
    "quickstart": lambda folder: quickstart(folder / "out"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_two_runs_do_not_share_a_folder(tmp_path: Path, name: str) -> None:
    with growing(tmp_path / "out"):
        with pytest.raises(OutputError, match=MESSAGE):
            COMMANDS[name](tmp_path)
        assert not any((tmp_path / "out").iterdir())
