"""`best/`, and what is said of the held-out loss before and after."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.training.runs import moe_folder, recipe, rows, trainer
from transformers import AutoModelForCausalLM

from smolmoe.evaluation.held_out import Change, DocumentLosses, change
from smolmoe.training.run import train

# A rate that rises until it ruins the model: the best step is an early one.
RUINED = {"learning_rate": 10.0, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 40, "max_grad_norm": 0}


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_folder(tmp_path_factory.mktemp("moe") / "moe")


def ruined(folder: Path, moe: Path, **settings: Any) -> dict[str, Any]:
    return recipe(folder, moe, trainer=trainer(**RUINED, **settings), evaluation={"tokens": 200, "every": 1})


def weights(folder: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


def test_best_is_an_early_checkpoint_in_spite_of_rotation_and_resuming(
    tmp_path: Path, moe: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    first = train(ruined(tmp_path, moe, max_steps=5, save_total_limit=1))
    kept = weights(run / "checkpoints" / f"checkpoint-{first.summary['best']['step']}")
    with caplog.at_level(logging.WARNING):
        result = train(ruined(tmp_path, moe, max_steps=8, save_total_limit=1), resume="latest")
    measured = {row["step"]: row["loss"] for row in rows(run, "held_out") if row["step"]}
    step = min(measured, key=lambda step: measured[step])
    assert step < 5  # or nothing is tested here
    assert result.summary["best"] == {"step": step, "loss": measured[step], "model": "best"}
    assert weights(run / "best") == kept
    assert weights(run / "best") != weights(run / "model")
    (run / "checkpoints").rename(tmp_path / "elsewhere")  # it stands by itself
    assert AutoModelForCausalLM.from_pretrained(run / "best").config.model_type == "mixtral"
    about = json.loads((run / "best" / "smolmoe.json").read_text())
    assert about["measured"]["held_out"]["loss"] == measured[step]
    assert about["checkpoint"] == step
    assert not [*run.glob(".*")]
    # It ended worse than it began, and says so.
    start = next(row["loss"] for row in rows(run, "held_out") if row["step"] == 0)
    found = result.summary["change"]
    assert found["verdict"] == "worse"
    assert found["before"] == result.summary["before"]["loss"] == pytest.approx(start)
    assert found["nats"] == pytest.approx(result.summary["held_out"]["loss"] - start)
    assert found["low"] <= found["nats"] <= found["high"]
    assert "got worse" in caplog.text


def test_a_last_step_that_is_the_best_takes_no_room_twice(tmp_path: Path, moe: Path) -> None:
    result = train(recipe(tmp_path, moe))
    assert result.summary["best"]["step"] == result.summary["steps"] == 6
    assert result.best == tmp_path / "run" / "best"
    one, other = (folder / "model.safetensors" for folder in (result.best, result.model))
    assert one.samefile(other)
    assert result.summary["change"]["verdict"] == "better"
    names = {path.name for path in result.model.iterdir()}
    assert {path.name for path in result.best.iterdir()} == names


def test_the_generic_class_comes_with_its_code(tmp_path: Path) -> None:
    from tests.training.runs import dense_folder

    from smolmoe import upcycle

    upcycle(dense_folder(tmp_path / "dense"), tmp_path / "generic", experts=4, target="generic", verify="none")
    result = train(ruined(tmp_path, tmp_path / "generic", max_steps=7))
    assert result.summary["best"]["step"] < 7
    assert result.best is not None
    assert {path.name for path in result.best.iterdir()} == {path.name for path in result.model.iterdir()}


def test_without_checkpoints_there_is_no_best(tmp_path: Path, moe: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = train(ruined(tmp_path, moe, max_steps=7, save_strategy="no"))
    assert result.best is None
    assert result.summary["best"]["model"] is None
    assert not (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "its checkpoint is missing" in caplog.text


def test_a_change_has_an_interval_over_documents() -> None:
    def losses(*nll: float) -> DocumentLosses:
        return DocumentLosses(nll, (10,) * len(nll), ("text",) * len(nll))

    lower = change(losses(*range(20, 40)), losses(*(value - 1 for value in range(20, 40))))
    assert (lower.verdict, lower.low, lower.high) == ("better", pytest.approx(-0.1), pytest.approx(-0.1))
    assert lower.perplexity_percent == pytest.approx(-9.516, abs=1e-3)
    assert change(losses(10, 20, 30, 40), losses(11, 19, 31, 39)).verdict == "unclear"
    alone = change(losses(10), losses(12))
    assert (alone.verdict, alone.low, alone.high) == ("worse", None, None)
    assert "WORSE: +0.2000 nats per token, perplexity +22.1%" in str(alone)
    assert Change.from_json(json.loads(json.dumps(lower.to_json()))) == lower


def test_the_report_shows_a_run_once(tmp_path: Path, moe: Path) -> None:
    from smolmoe.reports.run import report

    result = train(recipe(tmp_path, moe, trainer=trainer(max_steps=2)))
    assert result.best is not None
    assert len(report([result.out], tmp_path / "page.html").found.models) == 1
    assert (result.best / "README.md").read_text() != (result.model / "README.md").read_text()


@pytest.mark.parametrize("text", ["null", "{}", "{", "\udcff", '{"nll": 1, "tokens": 2, "domains": 3}'])
def test_damaged_losses_from_before_do_not_fail_a_run(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from smolmoe.evaluation.held_out import DocumentLosses
    from smolmoe.training.best import losses_before

    last = DocumentLosses((1.0,), (2,), ("text",))
    assert losses_before(tmp_path, last) is None
    assert not caplog.messages
    (tmp_path / "held_out_before.json").write_text(text, errors="surrogateescape")
    assert losses_before(tmp_path, last) is None
    assert "cannot be read" in caplog.text
