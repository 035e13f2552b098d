"""A run continued at the rate of the stable phase, dense and as an MoE: warm-up, stable, decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import dense_folder, recipe, rows, trainer

from smolmoe.surgery.run import upcycle
from smolmoe.training.run import train

STABLE = {"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 3e-3}
CONTINUED = {
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 0.3, "decay_type": "linear"},
    "warmup_steps": 0,
    "learning_rate": 3e-3,
    "max_steps": 10,
    "logging_steps": 1,
}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "muon"])
def test_both_arms_keep_the_rate_and_decay_in_the_last_third(tmp_path: Path, optim: str) -> None:
    dense = dense_folder(tmp_path / "dense")
    base = train(recipe(tmp_path, dense, trainer=trainer(**STABLE, max_steps=8, optim=optim), out=str(tmp_path / "b")))
    upcycle(base.model, tmp_path / "moe", experts=4, verify="none")

    def arm(model: Path, name: str, **changes: Any) -> list[float]:
        values = recipe(tmp_path, model, carry={"optimizer": str(base.out)}, **changes)
        values |= {"trainer": trainer(**CONTINUED, optim=optim), "out": str(tmp_path / name)}
        values["data"]["skip"] = 32
        run = train(values).out
        assert rows(run, "held_out")[-1]["loss"] < rows(run, "held_out")[0]["loss"]
        return [row["learning_rate"] for row in rows(run, "window")]

    expected = [3e-3] * 8 + [2e-3, 1e-3]
    assert arm(base.model, "dense-arm") == pytest.approx(expected)
    assert arm(tmp_path / "moe", "moe-arm", objective={"load_balance": 0.01}) == pytest.approx(expected)


def test_it_resumes_in_the_decay(tmp_path: Path) -> None:
    values = recipe(tmp_path, dense_folder(tmp_path / "dense"), trainer=trainer(**CONTINUED, save_steps=9))
    whole = train({**values, "out": str(tmp_path / "whole")})
    train(values)
    again = train(values, resume=str(tmp_path / "run" / "checkpoints" / "checkpoint-9"))
    assert rows(again.out, "step") == rows(whole.out, "step")
    assert rows(again.out, "window")[-1]["learning_rate"] == pytest.approx(1e-3)
