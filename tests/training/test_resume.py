"""Interrupted runs: killed, out of room, without a number; and what they go on from."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.processes import Child, killed_in
from tests.training.runs import dense_folder, moe_folder, recipe, rows, trainer, write_text

from smolmoe.errors import CheckpointError, OutputError
from smolmoe.training.checkpoints import find_checkpoint, problem_of, whole_checkpoints
from smolmoe.training.objective import NotFiniteError
from smolmoe.training.run import train

# Everything that draws: learned noise, sampling, dropped experts.
RANDOM = {
    "objective": {"load_balance": 0.01, "z_loss": 0.001},
    "routing": {"noise": "learned", "sample": True, "expert_dropout": 0.1, "temperature": 1.3},
}
LATER = 20_000  # calls: some steps
CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from smolmoe.training.run import train
values, resume = json.loads(sys.argv[1])
train(values, resume=resume)
"""


def steps(run: Path) -> list[dict[str, Any]]:
    return rows(run, "step")


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    return moe_folder(tmp_path / "moe")


def test_killed_at_any_moment_it_goes_on_to_the_last_digit(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe, **RANDOM, trainer=trainer(max_steps=40, save_steps=3))
    whole = train({**values, "out": str(tmp_path / "whole")})
    run = Path(values["out"])
    # Somewhere in a step, a measurement or a write after the first checkpoint.
    killed = killed_in("smolmoe.training.checkpoints:AtomicCheckpoints._finish", 1, later=LATER)
    with Child(killed + CHILD, json.dumps([values, None])) as child:
        assert child.wait() == -signal.SIGKILL, child.stderr
    assert not (run / "summary.json").exists()
    reached = len(steps(run))
    again = train(values, resume="latest")
    assert steps(again.out) == steps(whole.out)
    assert 0 < reached < 40
    a, b = (load_file(result.model / "model.safetensors") for result in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert rows(again.out, "held_out")[-1]["loss"] == rows(whole.out, "held_out")[-1]["loss"]


def test_what_led_to_a_checkpoint_is_on_disk_before_it(tmp_path: Path, moe: Path, monkeypatch: Any) -> None:
    """Killed right after a checkpoint, a run has lost no row of the steps before it."""
    from smolmoe.training.checkpoints import AtomicCheckpoints

    finish = AtomicCheckpoints._finish

    def then_killed(self: Any, written: Path, place: Path) -> None:
        finish(self, written, place)
        raise SystemExit

    monkeypatch.setattr(AtomicCheckpoints, "_finish", then_killed)
    values = recipe(tmp_path, moe, trainer=trainer(save_steps=3, logging_steps=100))
    values["evaluation"] = {"every": 6, "tokens": 200}
    with pytest.raises(SystemExit):
        train(values)
    assert [row["step"] for row in steps(Path(values["out"]))] == [1, 2, 3]


def test_more_steps_than_first_planned(tmp_path: Path, moe: Path) -> None:
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    longer = recipe(tmp_path, moe, **RANDOM, trainer=trainer(max_steps=8, **constant))
    whole = train({**longer, "out": str(tmp_path / "whole")})
    train({**longer, "trainer": trainer(max_steps=4, **constant)})
    again = train(longer, resume="latest")
    assert steps(again.out) == steps(whole.out)
    assert again.summary["steps"] == 8


def test_best_and_a_path(tmp_path: Path, moe: Path) -> None:
    """A rate that ruins the model makes an early checkpoint the best; it is kept although newer ones came."""
    values = recipe(tmp_path, moe, trainer=trainer(max_steps=12, learning_rate=3.0, save_total_limit=1, save_steps=2))
    values["evaluation"] = {"every": 1, "tokens": 200}
    run = train(values).out
    losses = {row["step"]: row["loss"] for row in rows(run, "held_out") if row["step"]}
    best = find_checkpoint(run, "best")
    assert best.name == f"checkpoint-{min(losses, key=losses.get)}"  # type: ignore[arg-type]
    assert best != find_checkpoint(run, "latest")
    again = train(values, resume=str(best))
    assert steps(again.out)[-1]["step"] == 12


def test_a_half_written_checkpoint_is_skipped_with_a_message(tmp_path: Path, moe: Path, caplog: Any) -> None:
    values = recipe(tmp_path, moe, trainer=trainer(save_steps=2))
    run = train(values).out
    first, last = whole_checkpoints(run)[-2:]
    with (last / "optimizer.pt").open("r+b") as file:
        file.truncate(100)
    assert find_checkpoint(run, "latest") == first
    assert "optimizer.pt has 100 bytes" in caplog.text
    with pytest.raises(CheckpointError, match="has 100 bytes"):
        find_checkpoint(run, str(last))
    (first / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoint(run, "latest")


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe)
    train(values)
    with pytest.raises(OutputError, match=r"contains a run \(finished\)"):
        train(values)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "summary.json").unlink()
    train(values)  # nothing to lose there
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other"):
        train({**values, "out": str(tmp_path / "other")}, overwrite=True)
    assert (tmp_path / "other" / "mine.txt").is_file()


def test_resumed_as_another_run(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe)
    train(values)
    with pytest.raises(OutputError, match=r"objective\.z_loss: 0\.0 there, 0\.1 here"):
        train({**values, "objective": {"z_loss": 0.1}}, resume="latest")
    write_text(tmp_path / "text.jsonl", documents=61)
    with pytest.raises(OutputError, match="has changed since the run started"):
        train(values, resume="latest")


def test_no_number_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    values = recipe(tmp_path, dense_folder(tmp_path / "dense"), trainer=trainer(learning_rate=1e30, warmup_steps=0))
    with pytest.raises(NotFiniteError, match="the step was not taken"):
        train(values)
    run = Path(values["out"])
    kept = find_checkpoint(run, "latest")
    assert kept.name == f"checkpoint-{len(steps(run))}"
    assert not (run / "summary.json").exists()


def test_a_gradient_that_is_no_number_stops_before_the_step(tmp_path: Path, moe: Path, monkeypatch: Any) -> None:
    from smolmoe.training.objective import Objective

    original = Objective.terms

    def poisoned(self: Any, *given: Any) -> dict[str, torch.Tensor]:
        terms = original(self, *given)
        weight = self.routers[0].weight
        # Finite itself, with an infinite slope.
        return {**terms, "poison": (weight - weight.detach()).abs().sum().sqrt() * 0}

    monkeypatch.setattr(Objective, "terms", poisoned)
    values = recipe(tmp_path, moe)
    with pytest.raises(NotFiniteError, match="gradient norm"):
        train(values)


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path, moe: Path) -> None:
    """Files larger than a limit cannot be written: what a full disk says, at the size of the second checkpoint."""
    values = recipe(tmp_path, moe, trainer=trainer(max_steps=8, save_steps=2), evaluation={"tokens": 200, "every": 8})
    limited = CHILD.replace(
        "train(values",
        """
import resource, signal
from smolmoe.training import checkpoints
finish = checkpoints.AtomicCheckpoints._finish
def then_full(self, written, place):
    finish(self, written, place)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
checkpoints.AtomicCheckpoints._finish = then_full
train(values""",
    )
    with Child(limited, json.dumps([values, None])) as child:
        assert child.wait() != 0
        assert "could not be written" in child.stderr
    run = Path(values["out"])
    assert [path.name for path in whole_checkpoints(run)] == ["checkpoint-2"]
    assert not list((run / "checkpoints").glob(".*"))
    assert train(values, resume="latest").summary["steps"] == 8


def test_a_manifest_names_what_is_missing(tmp_path: Path, moe: Path) -> None:
    run = train(recipe(tmp_path, moe)).out
    copied = tmp_path / "checkpoint-1"
    shutil.copytree(whole_checkpoints(run)[-1], copied)
    assert problem_of(copied) is None
    (copied / "scheduler.pt").unlink()
    assert problem_of(copied) == "scheduler.pt is missing"


def test_killed_before_the_summary_it_measures_what_it_measured(tmp_path: Path, moe: Path) -> None:
    """From the last checkpoint there is no step left to measure at; the loss is the same, autocast or not."""
    values = recipe(tmp_path, moe, trainer=trainer(bf16=True))
    first = train(values).summary["held_out"]["loss"]
    (tmp_path / "run" / "summary.json").unlink()
    assert train(values, resume="latest").summary["held_out"]["loss"] == pytest.approx(first, abs=1e-7)
