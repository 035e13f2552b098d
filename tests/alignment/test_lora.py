"""Which modules adapters go on, and what is said where the targets mean the experts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from helpers import dense_llama, random_moe, save
from tests.alignment.runs import moe_folder, recipe

from smolmoe.alignment.lora import lora_config
from smolmoe.alignment.run import align, estimate
from smolmoe.errors import RequestError
from smolmoe.recipe.align import LoraRecipe


def targets(model: Any, **options: Any) -> list[str]:
    found: list[str] = lora_config(LoraRecipe(rank=2, **options), model, train_routers=True).target_modules
    return sorted({name.rpartition(".")[2] for name in found})


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "granitemoeshared", "glm4_moe"])
@pytest.mark.parametrize("asked", ["all-linear", ("q_proj", "w2"), ("mlp.experts.gate_up_proj",), ("experts",)])
def test_targets_that_mean_the_experts_name_the_option(kind: str, asked: Any) -> None:
    model = random_moe(kind)
    with pytest.raises(RequestError) as caught:
        targets(model, targets=asked)
    assert caught.value.field == "lora.targets"
    assert "lora.experts: true" in str(caught.value.fix)
    if asked != ("q_proj", "w2"):
        assert lora_config(LoraRecipe(rank=2, targets=asked, experts=True), model, train_routers=True).target_parameters


@pytest.mark.parametrize("name", ["gate_proj", "up_proj", "down_proj"])
def test_a_name_that_experts_and_others_have(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RequestError, match="part of stacked tensors"):
        targets(random_moe("mixtral"), targets=(name,))
    with caplog.at_level(logging.WARNING):
        assert targets(random_moe("qwen2_moe"), targets=(name,)) == [name]  # of the shared expert
    assert "not in the routed experts" in caplog.text


def test_all_linear_of_a_dense_model_is_every_linear_module_of_its_layers() -> None:
    every = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert targets(dense_llama(), targets="all-linear") == every
    assert targets(random_moe("mixtral"), targets="all-linear", experts=True) == [
        "k_proj",
        "o_proj",
        "q_proj",
        "v_proj",
    ]


@pytest.mark.parametrize("train_routers", [True, False])
def test_routers_that_train_are_kept_whole_beside_the_adapters(train_routers: bool) -> None:
    config = lora_config(LoraRecipe(rank=2), random_moe("mixtral"), train_routers=train_routers)
    routers = [f"model.layers.{layer}.mlp.gate" for layer in range(2)]
    assert config.modules_to_save == (routers if train_routers else None)


@pytest.mark.parametrize("run", [align, estimate])
def test_the_targets_are_looked_at_before_rows_and_weights(tmp_path: Path, run: Any) -> None:
    moe = moe_folder(tmp_path / "moe")
    values = recipe(tmp_path, moe, "sft", lora={"rank": 2, "targets": ["gate_proj"]}, data={"train": ["nowhere.jsonl"]})
    with pytest.raises(RequestError) as caught:
        run(values)
    assert caught.value.field == "lora.targets"


@pytest.mark.parametrize("run", [align, estimate])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"router": "frozen"}, "router"),
        ({"objective": {"z_loss": 0.1}}, "objective.z_loss"),
        ({"lora": {"experts": True}}, "lora.experts"),
        ({"model": {"attention": "nonsense"}}, "model.attention"),
        ({"trainer": {"optim": "adamw_8bit"}}, "trainer.optim"),
    ],
)
def test_what_a_model_cannot_do_is_known_before_the_rows(
    tmp_path: Path, run: Any, changes: dict[str, Any], field: str
) -> None:
    values = recipe(tmp_path, save(dense_llama(), tmp_path / "dense"), "sft", data={"train": ["nowhere.jsonl"]})
    for section, content in changes.items():
        values[section] = {**values.get(section, {}), **content} if isinstance(content, dict) else content
    with pytest.raises(RequestError) as caught:
        run(values)
    assert caught.value.field == field
