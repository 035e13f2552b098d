"""Training, verifying and sharding on a GPU."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import edit_tensors
from safetensors.torch import load_file
from tests.benchmarks.test_tools import BENCHMARKS
from tests.training.runs import dense_folder, moe_folder, recipe, rows, trainer

from smolmoe.surgery.run import upcycle
from smolmoe.training.run import train
from smolmoe.verification.verify import verify

# Adam makes a full step of a gradient that is 0 but for rounding, unless that is small beside its epsilon.
STEADY: dict[str, Any] = {"bf16": False, "adam_epsilon": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0}
TERMS = {"objective": {"load_balance": 0.01, "z_loss": 0.001}}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def apart(a: Path, b: Path) -> float:
    ours, theirs = weights(a), weights(b)
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path, device: str) -> None:
    """With everything that draws random numbers, whose state is saved per device."""
    routing = {"routing": {"noise": "learned", "sample": True, "expert_dropout": 0.1, "temperature": 1.3}}
    moe = moe_folder(tmp_path / "moe")
    values = recipe(tmp_path, moe, device=device, **TERMS, **routing, trainer=trainer(save_steps=3, **STEADY))
    whole = train({**values, "out": str(tmp_path / "whole")}).out
    train({**values, "trainer": {**values["trainer"], "max_steps": 3}})
    again = train(values, resume="latest").out
    # Kernels add up in no fixed order, and a run repeats itself to rounding alone.
    assert apart(again, whole) < 1e-4
    for one, other in zip(rows(again, "step"), rows(whole, "step"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert [row["seconds"] for row in rows(again, "window")]


def test_training_is_that_of_the_cpu(tmp_path: Path, device: str) -> None:
    moe = moe_folder(tmp_path / "moe")
    values = recipe(tmp_path, moe, **TERMS, trainer=trainer(**STEADY))
    places = enumerate(("cpu", device))
    runs = [train({**values, "device": place, "out": str(tmp_path / str(number))}).out for number, place in places]
    assert apart(runs[0], runs[1]) < 1e-3
    assert rows(runs[1], "window")[-1]["memory"] > 0


def test_bf16_autocast_trains(tmp_path: Path, device: str) -> None:
    """Of the loss that fp32 reaches, within bf16's rounding; weights stay in fp32."""
    moe = moe_folder(tmp_path / "moe")
    found = []
    for lowered in (False, True):
        values = recipe(tmp_path, moe, device=device, **TERMS, trainer=trainer(**{**STEADY, "bf16": lowered}))
        run = train({**values, "out": str(tmp_path / f"bf16-{lowered}")}).out
        found.append(rows(run, "step")[-1]["ce"])
        assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    assert found[1] == pytest.approx(found[0], abs=0.05)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_carried_moments_train(tmp_path: Path, optim: str, device: str) -> None:
    """The dense model's Adam state, whose steps the fused kernel reads on the GPU."""
    same = {**STEADY, "optim": optim}
    dense = dense_folder(tmp_path / "dense")
    values = recipe(tmp_path, dense, device=device, trainer=trainer(save_steps=6, **same))
    run = train({**values, "out": str(tmp_path / "dense-run")}).out
    upcycle(run / "model", tmp_path / "moe", experts=4, verify="none")
    onward = recipe(tmp_path, tmp_path / "moe", device=device, carry={"optimizer": str(run)}, trainer=trainer(**same))
    losses = [row["ce"] for row in rows(train({**onward, "out": str(tmp_path / "moe-run")}).out, "step")]
    assert losses[0] < rows(run, "step")[0]["ce"]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


@pytest.mark.parametrize("request_", [{}, {"granularity": 2, "top_k": 2}, {"shared": "residual"}], ids=str)
def test_a_conversion_is_verified(tmp_path: Path, request_: dict[str, Any], device: str) -> None:
    dense = dense_folder(tmp_path / "dense")
    upcycle(dense, tmp_path / "moe", experts=4, verify="none", **request_)
    found = verify(dense, tmp_path / "moe", device=device)
    assert found.passed, [check for check in found.checks if not check.passed]


def test_a_wrong_conversion_is_not(tmp_path: Path, device: str) -> None:
    """Nor does TF32, where someone turned it on, fail a right one."""
    dense = dense_folder(tmp_path / "dense")
    upcycle(dense, tmp_path / "moe", experts=4, verify="none")
    backend = torch.backends.cuda.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        assert verify(dense, tmp_path / "moe", device=device).passed
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before

    def disturb(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "w2" in name or "down_proj" in name)
        tensors[name] = tensors[name] * 1.01

    edit_tensors(tmp_path / "moe", disturb)
    assert not verify(dense, tmp_path / "moe", device=device).passed


def test_one_sharded_process(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """FSDP2 over NCCL: steps as without, and from a state that was gathered (`benchmarks/gpu.py --only fsdp`)."""
    import time

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # to be restored
    checks, setting = import_module("gpu_checks"), import_module("gpu_setting")
    found = [*checks.part_fsdp(setting.Setting(device, True, time.monotonic() + 600))]
    assert [row.get("error") for row in found] == [None, None]
    assert all(row["passed"] for row in found), found
