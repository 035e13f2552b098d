"""Checkpoints of one dense run as the experts of an MoE (as in UpIT)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.runs import dense_folder, recipe, trainer

from smolmoe.moe.loading import load_model
from smolmoe.surgery.run import upcycle
from smolmoe.training.run import train

STEPS = (4, 8, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upit")
    steps = trainer(max_steps=STEPS[-1], save_total_limit=len(STEPS))
    every = {"every": STEPS[0], "tokens": 200}  # checkpoints, too
    return train(recipe(folder, dense_folder(folder / "dense"), trainer=steps, evaluation=every)).out


@pytest.mark.parametrize("half", [False, True])
def test_each_expert_is_a_checkpoint(half: bool, run: Path, tmp_path: Path) -> None:
    checkpoints = {f"step{step}": run / "checkpoints" / f"checkpoint-{step}" for step in STEPS}
    own = {"shared": 32, "top_k": 1, "gates": "independent", "target": "glm4_moe"} if half else {}
    result = upcycle(
        run / "model",
        tmp_path / "moe",
        expert={name: str(folder) for name, folder in checkpoints.items()},
        attention="base",
        experts=6,
        verify="quick",
        **own,
    )
    assert result.claim.kind == "none"
    assert result.verification is not None
    assert result.verification.passed
    assert result.plan.config["expert_names"] == [*checkpoints, *checkpoints]
    # Six steps of a small model: together they are near the last one.
    assert abs(result.verification.logits.delta_loss) < 0.5
    experts = load_model(tmp_path / "moe").model.layers[1].mlp.experts.down_proj
    start = 32 if half else 0
    for expert, step in enumerate((*STEPS, *STEPS)):
        dense = load_file(checkpoints[f"step{step}"] / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
        assert torch.equal(experts[expert], dense[:, start:])
    assert not torch.equal(experts[0], experts[1])
