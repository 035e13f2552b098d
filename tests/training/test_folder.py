"""The folder of a run: what is cleared there, what is kept, and whose checkpoints are resumed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer
from tests.alignment import runs as align_runs
from tests.training.runs import dense_folder, recipe, rows, trainer

from smolmoe.alignment.run import align
from smolmoe.core.files import write_json
from smolmoe.errors import OutputError, RequestError
from smolmoe.training import folder as run_folder
from smolmoe.training.checkpoints import find_checkpoint, whole_checkpoints
from smolmoe.training.run import train

USERS = ("notes.txt", "plots/a.png", "checkpoints/mine.txt", "checkpoints/checkpoint-2-good/weights", "runs/mine.csv")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_folder(tmp_path_factory.mktemp("source") / "dense")


@pytest.fixture
def values(tmp_path: Path, source: Path) -> dict[str, Any]:
    short = trainer(max_steps=2, save_steps=1, save_total_limit=9)
    return recipe(tmp_path, source, trainer=short, evaluation={"tokens": 100, "every": 2})


def put_users(run: Path) -> None:
    for name in USERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")


def users(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text() for name in USERS}


def test_starting_over_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path, values: Any) -> None:
    logged = {**values, "trainer": {**values["trainer"], "report_to": "tensorboard"}}
    run = train(logged).out
    put_users(run)
    again = train({**values, "trainer": trainer(max_steps=1)}, overwrite=True)
    assert users(run) == dict.fromkeys(USERS, "mine")
    assert [path.name for path in whole_checkpoints(run)] == ["checkpoint-1"]
    assert not list(run.rglob("events.out.tfevents.*"))
    assert [row["step"] for row in rows(run, "step")] == [1]
    (again.out / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint-1")
    train(values)  # there is no whole checkpoint that could be lost
    assert users(run) == dict.fromkeys(USERS, "mine")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_the_folder_it_leads_to(tmp_path: Path, values: Any, there: bool) -> None:
    out, target = Path(values["out"]), tmp_path / "disk" / "run"
    target.parent.mkdir()
    out.symlink_to(target)
    if there:
        train(values)
    train({**values, "seed": 7, "trainer": trainer(max_steps=1)}, overwrite=True)
    assert out.is_symlink()
    assert (target / "model" / "model.safetensors").is_file()
    (checkpoint,) = whole_checkpoints(out)
    for folder in (target, checkpoint):
        assert json.loads((folder / "run.json").read_text())["recipe"]["seed"] == 7


class Killed(BaseException):
    """As SIGKILL: nothing between here and the end of the process is to catch it."""


@pytest.mark.parametrize("last", ["run.json", "tokenizer"])
@pytest.mark.parametrize("resume", [None, "latest"])
def test_killed_as_it_begins_it_can_be_started(
    tmp_path: Path, values: Any, monkeypatch: Any, last: str, resume: str | None
) -> None:
    def killed(path: Path, data: Any) -> None:
        if last == "tokenizer":
            write_json(path, data)
        else:
            path.with_name(f".{path.name}.partial").write_text("{")
        raise Killed

    monkeypatch.setattr(run_folder, "write_json", killed)
    with pytest.raises(Killed):
        train(values)
    monkeypatch.undo()
    assert train(values, resume=resume).summary["steps"] == 2


def test_an_empty_folder_is_a_run_that_was_killed_at_once(values: Any) -> None:
    Path(values["out"]).mkdir()
    assert train(values, resume="latest").summary["steps"] == 2


def test_what_earlier_versions_left_can_be_started(tmp_path: Path, values: Any) -> None:
    """They wrote the tokenizer first. Another one there is somebody's."""
    run = Path(values["out"])
    tiny_tokenizer().save_pretrained(run / "tokenizer")
    train(values)
    shutil.rmtree(run)
    other = tiny_tokenizer()
    other.add_tokens(["something"])
    other.save_pretrained(run / "tokenizer")
    with pytest.raises(OutputError, match="different tokenizer"):
        train(values)
    (run / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other"):
        train(values)


def test_checkpoints_of_another_run_are_not_resumed_from(tmp_path: Path, values: Any) -> None:
    """Wherever they lie, and whatever the folder's own record says."""
    other = train({**values, "seed": 7, "out": str(tmp_path / "other")}).out
    run = Path(values["out"])
    checkpoint = find_checkpoint(other, "latest")
    with pytest.raises(OutputError, match=r"resume=.*different recipe \(seed: 7 there, 0 here\)"):
        train(values, resume=str(checkpoint))
    assert not run.exists()
    train(values)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(OutputError, match="seed: 7 there, 0 here"):
        train(values, resume="latest")
    assert (run / "summary.json").is_file()


def test_another_run_may_branch_off_with_a_schedule_of_its_own(tmp_path: Path, values: Any) -> None:
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 1}
    constant = trainer(max_steps=2, **schedule, lr_scheduler_kwargs={"num_decay_steps": 1, "num_stable_steps": 100})
    trunk = train({**values, "trainer": constant, "out": str(tmp_path / "trunk")}).out
    decayed = trainer(max_steps=4, **schedule, lr_scheduler_kwargs={"num_decay_steps": 2, "num_stable_steps": 1})
    branch = {**values, "trainer": decayed}
    assert train(branch, resume=str(find_checkpoint(trunk, "latest"))).summary["steps"] == 4


def test_a_run_does_not_end_before_its_checkpoint(tmp_path: Path, values: Any) -> None:
    train(values)
    with pytest.raises(RequestError, match="is at step 2, but the run ends at step 1"):
        train({**values, "trainer": {**values["trainer"], "max_steps": 1}}, resume="latest")


def test_a_resumed_run_counts_the_seconds_before(tmp_path: Path, values: Any) -> None:
    run = train(values).out
    file = run / "metrics.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | ({"seconds": 500.0} if "seconds" in row else {})) + "\n" for row in kept))
    assert train(values, resume=str(run / "checkpoints" / "checkpoint-1")).summary["train_seconds"] > 500


def test_an_alignment_keeps_the_users_files(tmp_path: Path, source: Path) -> None:
    values = align_runs.recipe(tmp_path, source, "sft", trainer=align_runs.trainer(max_steps=1))
    run = align(values).out
    put_users(run)
    align({**values, "trainer": align_runs.trainer(max_steps=1, save_strategy="no")}, overwrite=True)
    assert users(run) == dict.fromkeys(USERS, "mine")
    assert whole_checkpoints(run) == []
