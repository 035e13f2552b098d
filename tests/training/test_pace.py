"""What a training shows while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.training.runs import dense_folder, recipe, trainer

from smolmoe.training.pace import Pace
from smolmoe.training.run import train


def batch(*lengths: int) -> dict[str, torch.Tensor]:
    """Input ids [B, 8] with a mask of these lengths."""
    mask = (torch.arange(8) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.zeros_like(mask), "attention_mask": mask}


def test_padding_is_not_counted() -> None:
    pace = Pace(processes=2)
    pace.saw(batch(8, 3))
    pace.saw({f"{side}_{name}": value for side in ("chosen", "rejected") for name, value in batch(2, 2).items()})
    pace.saw({"input_ids": torch.zeros(2, 8)})
    assert pace.read() == 2 * (11 + 8 + 16)
    assert pace.read() == 70


def test_the_loss_is_smoothed_and_starts_at_the_first() -> None:
    pace = Pace()
    assert pace.words(0.0, now=0.0) == ""
    pace.step(torch.tensor(4.0))
    assert pace.words(0.0, now=1.0) == "loss 4.0000"
    for _ in range(100):
        pace.step(torch.tensor(2.0))
    assert pace.words(0.0, now=2.0) == "loss 2.0000"


def test_the_speed_is_that_of_the_last_seconds_of_training() -> None:
    pace = Pace()
    for second in range(61):
        pace.saw({"input_ids": torch.zeros(1, 100 if second > 30 else 1)})
        said = pace.words(float(second), now=float(second))
    assert said == "100 tokens/s"


def test_it_reads_the_device_at_most_twice_a_second_but_for_a_measurement() -> None:
    pace = Pace()
    pace.step(torch.tensor(4.0))
    assert pace.words(0.0, now=10.0) == "loss 4.0000"
    pace.step(torch.tensor(2.0))
    assert pace.words(0.0, now=10.1) == "loss 4.0000"
    pace.measured(3.5)
    assert pace.words(0.0, now=10.2) == "loss 2.9474, held out 3.5000"


@pytest.mark.parametrize("before", [True, False])
def test_a_run_reports_its_steps_and_ends_with_before_and_after(tmp_path: Path, before: bool) -> None:
    told: list[tuple[str, int, int, str]] = []
    model = dense_folder(tmp_path / "dense")
    values = recipe(tmp_path, model, trainer=trainer(max_steps=3), evaluation={"tokens": 200, "before": before})
    result = train(values, report=lambda what, done, total, detail="": told.append((what, done, total, detail)))
    steps = [event for event in told if event[0] == "Training"]
    assert [done for _, done, total, _ in steps if total == 3][-1] == 3
    assert steps[-1][3].startswith("loss ")
    assert "held out" in steps[-1][3]
    assert any(what == "Measuring the held-out loss" and done == total for what, done, total, _ in told)
    outcome = result.outcome
    (loss,) = outcome.measured
    assert (loss.before is not None) == before
    assert loss.after == result.summary["held_out"]["loss"]
    assert outcome.verdict == (result.summary["change"]["verdict"] if before else None)
    assert outcome.tokens == 3 * 4 * 32
    assert outcome.tokens_per_second == pytest.approx(outcome.tokens / outcome.seconds)
    assert outcome.source == str(model)
    assert result.to_json()["outcome"]["model"] == str(result.model)
