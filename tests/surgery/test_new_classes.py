"""MoEs of classes that share their config with a dense model, or that change more than the FFN: written, trained, pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.training.runs import recipe, rows

import smolmoe
from smolmoe.moe.loading import load_model
from smolmoe.moe.routing import RoutingCapture

CLASSES: dict[str, dict[str, Any]] = {
    "gemma3": {"granularity": 2},
    "granitemoehybrid": {"shared": "full"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_written_verified_routed_trained_and_pruned(name: str, tmp_path: Path) -> None:
    made = smolmoe.upcycle(zoo.folder(name), tmp_path / "moe", experts=4, **CLASSES[name])
    assert made.target != "generic"
    assert made.verification is not None
    assert made.verification.passed
    model = load_model(tmp_path / "moe")
    with RoutingCapture(model) as capture:
        model(input_ids=torch.arange(3, 30)[None])
    assert capture.layers == [0, 1, 2]
    assert capture.routing(1).indices.shape == (27, 2)
    smolmoe.train(recipe(tmp_path, tmp_path / "moe", objective={"load_balance": 0.1}))
    trained = rows(tmp_path / "run", "step")
    assert trained[-1]["ce"] < trained[0]["ce"]
    smolmoe.prune(tmp_path / "run", tmp_path / "pruned", keep=[0, 1])
    assert load_model(tmp_path / "pruned").num_parameters() < model.num_parameters()
