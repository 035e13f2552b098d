"""One alignment: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import dense_llama, save, tiny_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from tests.alignment.runs import METHODS, data, moe_folder, recipe, trainer, write_corrections
from tests.training.runs import rows, sampling_settings
from transformers import AutoModelForCausalLM

from smolmoe.alignment.arguments import DEFAULTS
from smolmoe.alignment.examples import read_examples
from smolmoe.alignment.measure import held_out_answers
from smolmoe.alignment.run import align, estimate
from smolmoe.alignment.tokens import tokenised
from smolmoe.moe.loading import load_model
from smolmoe.recipe import parse
from smolmoe.recipe.align import AlignDataRecipe
from smolmoe.surgery.run import upcycle


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = moe_folder(tmp_path_factory.mktemp("moe") / "moe")
    sampling_settings(folder, write=True)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(dense_llama(), tmp_path_factory.mktemp("dense") / "dense")


@pytest.mark.parametrize("method", METHODS)
def test_an_moe_is_aligned(tmp_path: Path, moe: Path, method: str) -> None:
    result = align(recipe(tmp_path, moe, method))
    summary = result.summary
    for row in rows(result.out, "step"):
        assert row["loss"] == pytest.approx(row[method] + row["load_balance"], abs=1e-6)
        assert row["load_balance"] == pytest.approx(0.01, rel=0.5)  # 1 is even
    assert rows(result.out, "gradients")[0]["norms"]["load_balance"] > 0
    window = rows(result.out, "window")[-1]
    assert 0 < window["balance"] <= 1
    assert {"max_violation", "dead"} <= set(window)
    if method != "sft":
        assert {"rewards/accuracies", "rewards/margins"} <= set(window)
        assert 0 <= summary["before"]["accuracy"] <= 1
        assert summary["after"]["margin"] != summary["before"]["margin"]
        grown = 0.05 * (summary["after"]["margin"] - summary["before"]["margin"])
        assert summary["after"]["reward_margin"] == pytest.approx(grown, abs=1e-6)
    else:
        assert summary["after"]["loss"] < summary["before"]["loss"]
    assert summary["drift"]["weights"] > 0
    assert summary["drift"]["changed"] > 0
    assert len(summary["drift"]["by_layer"]["kl"]) == 2
    assert json.loads((result.out / "summary.json").read_text()) == summary
    model = AutoModelForCausalLM.from_pretrained(result.model)
    source = AutoModelForCausalLM.from_pretrained(moe)
    assert model.config.router_aux_loss_coef == source.config.router_aux_loss_coef
    assert model.config.pad_token_id == source.config.pad_token_id
    provenance = json.loads((result.model / "smolmoe.json").read_text())
    assert provenance["stage"] == "align"
    assert provenance["request"]["method"] == method


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_our_generic_class_is_aligned(tmp_path: Path, method: str) -> None:
    """It keeps a causal LM inside, under which TRL must find the backbone."""
    source = tmp_path / "moe"
    save(dense_llama(), tmp_path / "dense")
    upcycle(tmp_path / "dense", source, experts=4, top_k=2, target="generic", verify="none")
    values = recipe(tmp_path, source, method, router="free", trainer=trainer(per_device_train_batch_size=40))
    values["trainer"]["bf16"] = False
    result = align(values)
    if method == "dpo":
        wanted = math.log(2)  # policy and reference are one
    else:
        section = parse(AlignDataRecipe, values["data"])
        found, _ = tokenised(read_examples(section, tiny_tokenizer(), pairs=False).train, tiny_tokenizer(), 64)
        wanted = held_out_answers(load_model(source), found).loss
    assert rows(result.out, "step")[0][method] == pytest.approx(wanted, rel=1e-5)
    assert result.summary["drift"]["weights"] > 0


def test_a_dense_model_has_no_router_figures(tmp_path: Path, dense: Path) -> None:
    result = align(recipe(tmp_path, dense, "dpo"))
    assert "drift" not in result.summary
    assert result.summary["router"] is None
    assert set(rows(result.out, "step")[0]) == {"kind", "step", "loss", "dpo"}


def test_the_resolved_recipe_can_be_run_again(tmp_path: Path, moe: Path) -> None:
    result = align(recipe(tmp_path, moe, "cpo"))
    written = yaml.safe_load((result.out / "recipe.yaml").read_text())
    assert written["trainer"]["lr_scheduler_type"] == "linear"  # a default of ours
    again = align({**written, "out": str(tmp_path / "again")})
    assert rows(again.out, "step") == rows(result.out, "step")


def test_defaults_are_those_of_the_seed_experiments(tmp_path: Path, moe: Path) -> None:
    for method, rate, batch, accumulated in (("sft", 7e-5, 12, 1), ("dpo", 5e-7, 4, 2), ("cpo", 5e-7, 8, 1)):
        assert DEFAULTS[method]["learning_rate"] == rate
        costs = estimate(recipe(tmp_path, moe, method, trainer={}))
        assert costs.steps == -(-costs.rows // (batch * accumulated))


@pytest.mark.parametrize(
    ("method", "lora"), [("sft", None), ("dpo", None), ("cpo", None), ("dpo", {"rank": 2, "experts": True})]
)
def test_a_frozen_router_is_what_it_was(tmp_path: Path, moe: Path, method: str, lora: Any) -> None:
    result = align(recipe(tmp_path, moe, method, router="frozen", lora=lora))
    before, after = load_file(moe / "model.safetensors"), load_file(result.model / "model.safetensors")
    routers = [name for name in before if "gate.weight" in name]
    assert len(routers) == 2
    for name in routers:
        assert torch.equal(before[name], after[name])
    assert any(not torch.equal(before[name], after[name]) for name in before if "experts" in name)
    assert result.summary["drift"]["weights"] == 0
    assert set(rows(result.out, "step")[0]) == {"kind", "step", "loss", method}


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "granitemoeshared"])
def test_adapters_are_merged_into_a_model_that_stock_transformers_loads(tmp_path: Path, model_type: str) -> None:
    source = moe_folder(tmp_path / "moe", model_type)
    result = align(recipe(tmp_path, source, "sft", lora={"rank": 3, "experts": True}))
    sizes = result.summary["parameters"]
    assert sizes["trainable"] < sizes["total"] / 2
    assert sizes["trainable"] == estimate(recipe(tmp_path, source, "sft", lora={"rank": 3, "experts": True})).trainable
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(result.model)(ids).logits
        base = AutoModelForCausalLM.from_pretrained(source)
        plain = base(ids).logits
        adapted = PeftModel.from_pretrained(base, result.out / "adapters")(ids).logits
    torch.testing.assert_close(merged, adapted, atol=2e-5, rtol=1e-4)
    assert (merged - plain).abs().max() > 0.1
    assert {path.name for path in source.iterdir()} == {path.name for path in result.model.iterdir()} - {
        "smolmoe.json",
        "README.md",
    }


@pytest.mark.parametrize(
    ("method", "lora"), [("sft", None), ("dpo", None), ("cpo", None), ("dpo", {"rank": 2, "experts": True})]
)
def test_a_resumed_run_is_the_same(tmp_path: Path, moe: Path, method: str, lora: Any) -> None:
    settings = trainer(save_steps=2, gradient_accumulation_steps=2)
    values = recipe(tmp_path, moe, method, lora=lora, routing={"noise": 0.1}, trainer=settings)
    whole = align(values)
    before = rows(whole.out, "step"), whole.summary, load_file(whole.model / "model.safetensors")
    shutil.rmtree(whole.out / "checkpoints" / "checkpoint-4")  # as if it had been killed
    shutil.rmtree(whole.model)
    (whole.out / "summary.json").unlink()
    resumed = align(values, resume="latest")
    assert rows(resumed.out, "step") == before[0]
    assert [row["step"] for row in before[0]] == [1, 2, 3, 4]
    for name, tensor in load_file(resumed.model / "model.safetensors").items():
        assert torch.equal(tensor, before[2][name]), name
    assert resumed.summary["after"] == before[1]["after"]
    saved = resumed.model if lora else resumed.out / "checkpoints" / "checkpoint-4"
    assert sampling_settings(saved) == sampling_settings(resumed.model) == sampling_settings(moe)


def test_precomputed_references_are_those_of_the_source(tmp_path: Path, moe: Path) -> None:
    """In a resumed run the policy has left it."""
    plain = align(recipe(tmp_path, moe, "dpo", trainer=trainer(save_steps=2)))
    settings = trainer(save_steps=2, precompute_ref_log_probs=True)
    values = recipe(tmp_path, moe, "dpo", trainer=settings, out=str(tmp_path / "precomputed"))
    result = align(values)
    wanted = [row["loss"] for row in rows(plain.out, "step")]
    whole = [row["loss"] for row in rows(result.out, "step")]
    # They are computed in other batches, so that log-probabilities of some hundred nats differ in their last digits.
    assert whole[:2] == pytest.approx(wanted[:2], abs=3e-5)
    assert whole == pytest.approx(wanted, abs=5e-3)  # Adam makes much of little gradients
    shutil.rmtree(result.out / "checkpoints" / "checkpoint-4")
    resumed = align(values, resume="latest")
    assert [row["loss"] for row in rows(resumed.out, "step")] == whole


def test_corrections_are_scored_before_and_after(tmp_path: Path, moe: Path) -> None:
    file = write_corrections(tmp_path / "gec.jsonl")
    corrections = {"train": [str(file)], "held_out": 0.2, "length": 64}
    result = align(recipe(tmp_path, moe, "sft", data=corrections, answers=3))
    scores = result.summary["corrections"]
    for when in ("before", "after"):
        assert set(scores[when]["model"]["metrics"]) >= {"bleu", "gleu", "sari", "exact_match"}
        assert scores[when]["model"]["rows"] == 3
    assert scores["before"]["copy"] == scores["after"]["copy"]
    assert scores["after"]["copy"]["metrics"]["bleu"]["value"] > scores["after"]["model"]["metrics"]["bleu"]["value"]
    # A preference run answers the texts of a file.
    values = recipe(tmp_path, moe, "cpo", data=data(tmp_path, corrections=str(file)), answers=2)
    assert align(values).summary["corrections"]["after"]["model"]["rows"] == 2


def test_the_estimate_says_what_the_run_does(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe, "dpo", router="frozen")
    costs, result = estimate(values), align(values)
    assert costs.steps == result.summary["steps"]
    assert costs.rows == result.summary["rows"]["train"]
    assert costs.trainable == result.summary["parameters"]["trainable"]
    assert costs.total == costs.trainable + 2 * 4 * 32
