"""Optimiser state across the conversion: training goes on as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.runs import dense_folder, recipe, rows, trainer

from smolmoe.errors import CheckpointError, RequestError
from smolmoe.surgery.run import upcycle
from smolmoe.training.carried import read_state_of
from smolmoe.training.checkpoints import find_checkpoint
from smolmoe.training.run import train

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0, "bf16": False, "max_grad_norm": 0.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dense training in `dense-run`, and its MoEs: `copy`, `split`, `residual`."""
    folder = tmp_path_factory.mktemp("carry")
    dense_folder(folder / "dense")
    steps = trainer(max_steps=12, learning_rate=3e-3, **CONSTANT)
    train(recipe(folder, folder / "dense", trainer=steps, out=str(folder / "dense-run")))
    model = folder / "dense-run" / "model"
    upcycle(model, folder / "copy", experts=4, verify="none")
    upcycle(model, folder / "split", experts=4, top_k=2, granularity=2, verify="none")
    upcycle(model, folder / "residual", experts=4, shared="residual", verify="none")
    return folder


def go_on(folder: Path, out: Path, model: str, steps: int = 4, **changes: Any) -> Path:
    """Train one of the models on, with the dense training's state unless `carry` says otherwise."""
    carry = {"optimizer": str(folder / "dense-run")}
    values = recipe(
        folder, folder / model, carry=carry, trainer=trainer(max_steps=steps, learning_rate=3e-3, **CONSTANT)
    )
    values["data"]["skip"] = 48
    values["evaluation"] = {"every": 1, "tokens": 400}
    return train(values | {"out": str(out)} | changes).out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run, "held_out")]


def test_what_was_kept_moves_as_in_the_dense_model(trained: Path, tmp_path: Path) -> None:
    """Copies with any routing give the dense gradient outside the experts, so one step is the dense model's."""
    dense = weights(go_on(trained, tmp_path / "dense", "dense-run/model", 1))
    moe = weights(go_on(trained, tmp_path / "moe", "copy", 1, routing={"freeze": 1}))
    fresh = weights(go_on(trained, tmp_path / "fresh", "copy", 1, carry=None))
    before = load_file(trained / "dense-run" / "model" / "model.safetensors")
    kept = [name for name in dense if name in moe and "mlp" not in name and "norm" not in name]
    assert len(kept) > 6
    for name in kept:
        step = (dense[name] - before[name]).norm()
        assert (moe[name] - dense[name]).norm() < 1e-3 * step, name
        assert (fresh[name] - dense[name]).norm() > 0.3 * step, name


@pytest.mark.parametrize("model", ["copy", "split", "residual"])
def test_no_spike(trained: Path, tmp_path: Path, model: str) -> None:
    """The loss goes on as the dense model's does, and far nearer to it than with a fresh Adam."""
    routing = {"warmup_steps": 4} | ({"tie_groups": 4} if model == "split" else {})
    dense = losses(go_on(trained, tmp_path / "dense", "dense-run/model"))
    carried = losses(go_on(trained, tmp_path / "carried", model, routing=routing))
    fresh = losses(go_on(trained, tmp_path / "fresh", model, carry=None))
    assert carried[0] == pytest.approx(dense[0], abs=1e-5)
    away, far_away = (max(abs(a - b) for a, b in zip(dense, run, strict=True)) for run in (carried, fresh))
    assert away < 0.4 * far_away
    assert max(carried) - carried[0] < max(dense) - dense[0] + 0.01


def test_scaled_tensors_have_their_own_rate_and_decay(trained: Path, tmp_path: Path) -> None:
    run = go_on(trained, tmp_path / "split", "split", 1, routing={"tie_groups": 1})
    state = torch.load(run / "checkpoints" / "checkpoint-1" / "optimizer.pt", weights_only=True)
    rates = {(round(group["lr"], 6), round(group["weight_decay"], 6)) for group in state["param_groups"]}
    assert (0.006, 0.05) in rates  # down projections, scaled by 2
    assert (0.003, 0.1) in rates


def test_a_resumed_run_keeps_its_own_state(trained: Path, tmp_path: Path) -> None:
    whole = go_on(trained, tmp_path / "whole", "copy", 4, routing={"warmup_steps": 2})
    go_on(trained, tmp_path / "parts", "copy", 2, routing={"warmup_steps": 2})
    values = recipe(trained, trained / "copy", carry={"optimizer": str(trained / "dense-run")})
    values |= {
        "routing": {"warmup_steps": 2},
        "evaluation": {"every": 1, "tokens": 400},
        "out": str(tmp_path / "parts"),
    }
    values["trainer"] = trainer(max_steps=4, learning_rate=3e-3, **CONSTANT)
    values["data"]["skip"] = 48
    assert rows(train(values, resume="latest").out, "step") == rows(whole, "step")


def test_state_of_another_model(trained: Path, tmp_path: Path) -> None:
    other = dense_folder(tmp_path / "other")
    with pytest.raises(RequestError, match="from a different model"):
        train(recipe(tmp_path, other, carry={"optimizer": str(go_on(trained, tmp_path / "moe-run", "copy", 1))}))


def test_a_run_that_kept_no_checkpoint_has_no_state(trained: Path, tmp_path: Path) -> None:
    dense = dense_folder(tmp_path / "source")
    bare = train(recipe(tmp_path, dense, out=str(tmp_path / "bare"), trainer=trainer(max_steps=1, save_strategy="no")))
    with pytest.raises(CheckpointError, match="no state of an optimiser") as refused:
        go_on(trained, tmp_path / "moe-run", "copy", 1, carry={"optimizer": str(bare.out)})
    assert refused.value.field == "carry.optimizer"
    assert "save_strategy" in str(refused.value.fix)


def test_state_of_a_checkpoint_folder_is_checked_as_that_of_a_run(trained: Path, tmp_path: Path) -> None:
    whole = find_checkpoint(trained / "dense-run", "latest")
    expected = read_state_of(trained / "dense-run")
    assert read_state_of(whole).keys() == expected.keys()
    for file in ("optimizer.pt", "scheduler.pt"):
        folder = Path(shutil.copytree(whole, tmp_path / file))
        (folder / file).write_bytes((folder / file).read_bytes()[:-1] + b"x")
        with pytest.raises(CheckpointError, match=f"{file}.*checksum"):
            read_state_of(folder)


def test_state_of_no_adam(trained: Path, tmp_path: Path) -> None:
    dense = trained / "dense-run" / "model"
    run = train(recipe(tmp_path, dense, trainer=trainer(optim="adafactor", max_steps=1), out=str(tmp_path / "ada"))).out
    for optimizer, problem in ((run, "no Adam state"), (tmp_path / "nowhere", "no complete checkpoint")):
        with pytest.raises(CheckpointError, match=problem):
            train(recipe(tmp_path, dense, carry={"optimizer": str(optimizer)}))
