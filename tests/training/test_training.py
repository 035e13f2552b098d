"""One run: what it writes, what it measures, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import VOCABULARY, edit_tensors, random_moe, save, tiny_tokenizer
from safetensors.torch import load_file
from tests.training.runs import dense_folder, moe_folder, recipe, rows, sampling_settings, trainer, write_text
from transformers import AutoModelForCausalLM

from smolmoe.errors import DataError, RequestError, SourceError, TrainingError
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.training.estimate import estimate, steps_for_flops
from smolmoe.training.run import train

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return dense_folder(tmp_path / "dense")


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    return moe_folder(tmp_path / "moe")


def test_a_run_from_scratch(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    values = recipe(tmp_path, None, tokenizer=str(tmp_path / "tokenizer"), trainer=trainer(max_steps=30))
    values["model"] = {"config": {"model_type": "llama", **SIZES}}
    values["samples"] = {"prompts": ["the sum"], "new_tokens": 4}
    result = train(values)
    held_out = rows(result.out, "held_out")
    assert held_out[0]["step"] == 0
    assert held_out[-1]["step"] == 30
    assert held_out[-1]["loss"] < held_out[0]["loss"] - 1
    assert [row["step"] for row in rows(result.out, "step")] == list(range(1, 31))
    model = AutoModelForCausalLM.from_pretrained(result.model)
    assert model.config.vocab_size == VOCABULARY
    assert model.config.max_position_embeddings == 32
    assert result.summary["samples"][0]["prompt"] == "the sum"
    assert set(result.summary["held_out"]["by_domain"]) == {"code", "prose"}


def test_the_losses_of_each_document_are_kept_on_request(tmp_path: Path, dense: Path) -> None:
    result = train(recipe(tmp_path, dense, evaluation={"by_document": True}, trainer=trainer(max_steps=2)))
    final = json.loads((result.out / "held_out.json").read_text())
    first, *_, last = rows(result.out, "held_out")
    assert last["nll"] == pytest.approx(final["nll"], abs=1e-4)
    assert sum(first["nll"]) / sum(final["tokens"]) == pytest.approx(first["loss"], abs=1e-4)


def test_the_resolved_recipe_says_everything_and_can_be_run_again(tmp_path: Path, dense: Path) -> None:
    result = train(recipe(tmp_path, dense))
    written = yaml.safe_load((result.out / "recipe.yaml").read_text())
    assert written["trainer"]["adam_beta2"] == 0.95  # a default of ours
    again = train({**written, "out": str(tmp_path / "again")})
    assert rows(again.out, "step") == rows(result.out, "step")


def test_a_tokenizer_is_learned_from_the_training_text_alone(tmp_path: Path) -> None:
    values = recipe(tmp_path, None, tokenizer=280, trainer=trainer(max_steps=1))
    values["model"] = {"config": {"model_type": "llama", **SIZES}}
    result = train(values)
    assert AutoModelForCausalLM.from_pretrained(result.model).config.vocab_size == 280


def test_an_moe_is_trained_with_its_terms(tmp_path: Path, moe: Path) -> None:
    result = train(recipe(tmp_path, moe, objective={"load_balance": 0.01, "z_loss": 0.001}))
    for row in rows(result.out, "step"):
        assert row["loss"] == pytest.approx(row["ce"] + row["load_balance"] + row["z_loss"], abs=1e-6)
        assert row["load_balance"] == pytest.approx(0.01, rel=0.5)  # 1 is even
    norms = rows(result.out, "gradients")[0]["norms"]
    assert norms["load_balance"] > 0
    assert norms["z_loss"] > 0
    window = rows(result.out, "window")[-1]
    assert 0 < window["balance"] <= 1
    assert window["balanced_perplexity"] >= window["perplexity"]
    assert window["active_experts"] + window["dead_experts"] == 8
    assert rows(result.out, "held_out")[0]["balance"] > 0
    assert AutoModelForCausalLM.from_pretrained(result.model).config.output_router_logits is False


def test_terms_change_what_is_learned(tmp_path: Path, moe: Path) -> None:
    """The weight of balance moves the routers, and the step's loss is what its rows say."""
    plain = train(recipe(tmp_path, moe))
    balanced = train(recipe(tmp_path, moe, out=str(tmp_path / "balanced"), objective={"load_balance": 1.0}))
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    weights = [load_file(run.model / "model.safetensors")[gate] for run in (plain, balanced)]
    assert not torch.equal(*weights)
    assert "load_balance" not in rows(plain.out, "step")[0]


def test_accumulated_batches_give_the_loss_of_one(tmp_path: Path, moe: Path) -> None:
    """CE exactly; balance up to the running load of the first half."""
    objective = {"load_balance": 0.01}
    whole = train(recipe(tmp_path, moe, objective=objective))
    halves = trainer(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    parts = train(recipe(tmp_path, moe, objective=objective, trainer=halves, out=str(tmp_path / "parts")))
    for a, b in zip(rows(whole.out, "step"), rows(parts.out, "step"), strict=True):
        assert a["ce"] == pytest.approx(b["ce"], abs=3e-3)
        assert a["load_balance"] == pytest.approx(b["load_balance"], rel=0.1)
    assert rows(whole.out, "step")[0]["ce"] == pytest.approx(rows(parts.out, "step")[0]["ce"], abs=1e-5)
    assert len(rows(parts.out, "gradients")) == 1


def test_without_accumulation_the_batch_is_the_micro_batch(tmp_path: Path, moe: Path) -> None:
    """Loads are counted anew at every step."""
    found = []
    for scope in ("batch", "micro_batch"):
        objective = {"load_balance": 0.01, "balance_scope": scope}
        found.append(rows(train(recipe(tmp_path, moe, objective=objective, out=str(tmp_path / scope))).out, "step"))
    assert found[0] == found[1]


def test_a_frozen_router_with_a_balance_term_stops_at_once(tmp_path: Path, moe: Path, monkeypatch: Any) -> None:
    from smolmoe.training import models

    build = models.build_model

    def frozen(*args: Any) -> Any:
        model = build(*args)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("gate.weight" not in name)
        return model

    monkeypatch.setattr(models, "build_model", frozen)
    with pytest.raises(TrainingError, match="no router weight is trained") as caught:
        train(recipe(tmp_path, moe, objective={"load_balance": 0.01}))
    assert caught.value.field == "objective.load_balance"


def test_a_detached_term_stops_at_once(tmp_path: Path, moe: Path, monkeypatch: Any) -> None:
    from smolmoe.moe import losses

    balance = losses.load_balance
    monkeypatch.setattr(losses, "load_balance", lambda probabilities, load: balance(probabilities.detach(), load))
    with pytest.raises(TrainingError, match="detached"):
        train(recipe(tmp_path, moe, objective={"load_balance": 0.01}))


def test_routers_stand_still_while_frozen_and_then_rise(tmp_path: Path, moe: Path) -> None:
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    before = load_file(moe / "model.safetensors")[gate]
    still = train(recipe(tmp_path, moe, routing={"freeze": 6}))
    assert torch.equal(load_file(still.model / "model.safetensors")[gate], before)
    moved = train(recipe(tmp_path, moe, routing={"freeze": 5}, out=str(tmp_path / "moved")))
    assert not torch.equal(load_file(moved.model / "model.safetensors")[gate], before)


def test_learning_rates_of_routers_and_experts(tmp_path: Path, moe: Path) -> None:
    """With a rate of almost nothing they stay; the rest moves."""
    values = recipe(tmp_path, moe, routing={"learning_rate": 1e-30}, expert_learning_rate=1e-30)
    values["trainer"]["weight_decay"] = 0.0
    after = load_file(train(values).model / "model.safetensors")
    before = load_file(moe / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("block_sparse_moe" in name for name in moved)


def test_temperature_is_folded_into_the_written_model(tmp_path: Path, moe: Path) -> None:
    settings = sampling_settings(moe, write=True)
    result = train(recipe(tmp_path, moe, routing={"temperature": 2.0}, trainer=trainer(learning_rate=1e-30)))
    assert sampling_settings(result.model) == sampling_settings(result.out / "checkpoints/checkpoint-6") == settings
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    before, after = (load_file(f / "model.safetensors")[gate] for f in (moe, result.model))
    torch.testing.assert_close(after, before / 2)
    # What was measured in training is what the files give.
    again = train(recipe(tmp_path, result.model, trainer=trainer(max_steps=1), out=str(tmp_path / "again")))
    assert rows(again.out, "held_out")[0]["loss"] == pytest.approx(rows(result.out, "held_out")[-1]["loss"], abs=1e-6)


@pytest.mark.parametrize("kind", ["glm4_moe", "ernie4_5_moe", "lfm2_moe"])  # each keeps its bias elsewhere
def test_selection_bias_moves_towards_the_idle(tmp_path: Path, kind: str) -> None:
    source = save(random_moe(kind), tmp_path / kind)
    result = train(recipe(tmp_path, source, objective={"bias_rate": 0.01, "load_balance": 0.01}))
    names = ("e_score_correction_bias", "expert_bias")
    name = next(n for n in load_file(result.model / "model.safetensors") if n.endswith(names))
    assert load_file(result.model / "model.safetensors")[name].abs().max() >= 0.01


@pytest.mark.parametrize("kind", ["cohere2_moe", "deepseek_v3", "hunyuan_v1_moe", "qwen3_5_moe_text"])
def test_other_classes_are_trained_with_a_balance_term(tmp_path: Path, kind: str) -> None:
    source = save(random_moe(kind, vocab_size=VOCABULARY + 8), tmp_path / kind)  # Qwen3.5's tokenizer adds a token
    objective, routing = {"load_balance": 0.01}, {"temperature": 2.0}
    result = train(recipe(tmp_path, source, objective=objective, routing=routing, trainer=trainer(max_steps=2)))
    assert rows(result.out, "gradients")[0]["norms"]["load_balance"] > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective": {"load_balance": 0.01}}, "objective.load_balance"),
        ({"routing": {"noise": 0.1}}, "routing.noise"),
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat"),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir"),
        ({"trainer": {"optim": "nonsense"}}, "trainer.optim"),
        ({"device": "abacus"}, "device"),
    ],
)
def test_what_a_dense_run_cannot_do(tmp_path: Path, dense: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as caught:
        train(recipe(tmp_path, dense, **changes))
    assert caught.value.field == field


def test_bias_and_ties_need_what_they_act_on(tmp_path: Path, moe: Path) -> None:
    for changes in ({"objective": {"bias_rate": 0.001}}, {"routing": {"tie_groups": 3}}):
        with pytest.raises(RequestError) as caught:
            train(recipe(tmp_path, moe, **changes), overwrite=True)
        if "objective" in changes:
            assert "beam" in str(caught.value.fix)
            assert "lfm2_moe" in str(caught.value.fix)
            assert "mixtral" not in str(caught.value.fix)


def test_blocks_longer_than_the_positions(tmp_path: Path, dense: Path) -> None:
    values = recipe(tmp_path, dense)
    values["data"]["length"] = 129
    with pytest.raises(RequestError, match="128 positions"):
        train(values)


def test_a_tokenizer_that_does_not_fit(tmp_path: Path, dense: Path) -> None:
    large = tiny_tokenizer()
    large.add_tokens([f"<extra{i}>" for i in range(3)])
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(RequestError, match="the model only 300"):
        train(recipe(tmp_path, dense, tokenizer=str(tmp_path / "large")))


def test_a_new_model_without_tokenizer(tmp_path: Path) -> None:
    values = recipe(tmp_path, None)
    values["model"] = {"config": {"model_type": "llama", **SIZES}}
    with pytest.raises(SourceError, match="needs a tokenizer"):
        train(values)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model_type": "lama"}, "model.config.model_type"),
        ({"model_type": "llama", "hidden_sise": 32}, "model.config.hidden_sise"),
    ],
)
def test_a_config_that_is_none(tmp_path: Path, dense: Path, config: dict[str, Any], field: str) -> None:
    values = recipe(tmp_path, None, tokenizer=str(dense))
    values["model"] = {"config": config}
    with pytest.raises(RequestError) as caught:
        train(values)
    assert caught.value.field == field


def test_too_little_text(tmp_path: Path, dense: Path) -> None:
    write_text(tmp_path / "text.jsonl", documents=3)
    values = recipe(tmp_path, dense)
    values["data"]["length"] = 128
    values["trainer"].pop("max_steps")
    with pytest.raises((DataError, RequestError)):
        train(values)


def test_epochs_instead_of_steps(tmp_path: Path, dense: Path) -> None:
    values = recipe(tmp_path, dense)
    values["trainer"] = {**trainer(num_train_epochs=0.5), "max_steps": -1}
    result = train(values)
    assert result.summary["steps"] == result.summary["data"]["train"]["tokens"] // 2 // (4 * 32)


def test_estimate_counts_what_the_run_then_counts(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe)
    costs = estimate(parse(TrainRecipe, values))
    summary = train(values).summary
    assert costs.flops == summary["flops"]
    assert costs.size.to_json() == summary["parameters"]
    assert summary["parameters"]["active"] < summary["parameters"]["total"]
    assert steps_for_flops(parse(TrainRecipe, values), summary["flops"]) == 6


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])  # as it was called
def test_gradient_checkpointing_trains_alike(tmp_path: Path, moe: Path, name: str) -> None:
    changes = {"objective": {"load_balance": 0.1}, "routing": {"noise": 0.3}}
    plain = train(recipe(tmp_path, moe, **changes))
    options = trainer(**{name: True})
    less = train(recipe(tmp_path, moe, **changes, trainer=options, out=str(tmp_path / "less")))
    for a, b in zip(rows(plain.out, "step"), rows(less.out, "step"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)
    assert rows(plain.out, "window")[-1]["balance"] == pytest.approx(rows(less.out, "window")[-1]["balance"], abs=1e-2)


def test_fp32_routers_say_how_often_they_would_choose_otherwise_in_bf16(tmp_path: Path, moe: Path) -> None:
    result = train(recipe(tmp_path, moe, routing={"fp32": True}))
    assert 0 <= result.summary["router_flips"] < 0.2
    assert "router_flips" not in train(recipe(tmp_path, moe), overwrite=True).summary


def test_reserved_experts_are_no_collapse(tmp_path: Path) -> None:
    """An expert that nothing is routed to is dead, or reserved."""
    source = save(random_moe("glm4_moe"), tmp_path / "glm")

    def avoid_the_last(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("e_score_correction_bias"):
                tensors[name][-1] = -100.0

    edit_tensors(source, avoid_the_last)
    values = recipe(tmp_path, source)
    plain = train(values)
    assert rows(plain.out, "alarm")[0]["dead"] == [[0, 3]]  # its only MoE layer, counted among those
    again = train({**values, "routing": {"reserved": [3]}, "out": str(tmp_path / "again")})
    assert not rows(again.out, "alarm")
    assert rows(again.out, "window")[-1]["dead"] == []
    assert rows(again.out, "window")[-1]["balance"] > rows(plain.out, "window")[-1]["balance"]


def test_any_logger_of_transformers_gets_the_metrics(tmp_path: Path, moe: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = recipe(tmp_path, moe, objective={"load_balance": 0.01}, trainer=trainer(report_to="tensorboard"))
    folder = next((train(values).out / "runs").iterdir())
    events = EventAccumulator(str(folder))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/ce", "train/balance", "train/tokens_per_second", "train/memory", "eval/loss"} <= names
    assert "train/router_gradient/load_balance" in names


def test_held_out_losses_are_measured_in_the_type_of_the_weights(tmp_path: Path, dense: Path) -> None:
    """Trained under bf16 autocast, measured without it: an exact conversion shows no jump of bf16's rounding."""
    from smolmoe.surgery.run import upcycle

    upcycle(dense, tmp_path / "split", experts=6, top_k=3, granularity=3, verify="none")
    first = []
    for name in ("dense", "split"):
        values = recipe(
            tmp_path, tmp_path / name, trainer=trainer(bf16=True, max_steps=1), out=str(tmp_path / f"run-{name}")
        )
        first.append(rows(train(values).out, "held_out")[0]["loss"])
    assert first[0] == pytest.approx(first[1], abs=2e-6)


def test_samples_fit_into_the_positions(tmp_path: Path, dense: Path, caplog: Any) -> None:
    values = recipe(tmp_path, dense, trainer=trainer(max_steps=1))
    values["samples"] = {"prompts": ["the sum", "see " * 200], "new_tokens": 500}
    with caplog.at_level("INFO"):
        samples = train(values).summary["samples"]
    assert [sample["prompt"] for sample in samples] == ["the sum"]
    assert "leaves no room" in caplog.text
    assert "format: " not in caplog.text
    assert "sampling: " not in caplog.text


def test_a_wrong_recipe_costs_no_run(tmp_path: Path, dense: Path) -> None:
    values = recipe(tmp_path, dense)
    model = train(values).model
    with pytest.raises(RequestError):
        train({**values, "objective": {"z_loss": 0.1}}, overwrite=True)
    assert (model / "model.safetensors").is_file()
