"""What an alignment refuses, leaves out, and never overwrites."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import dense_llama, edit_tensors, save, tiny_tokenizer
from tests.alignment.runs import data, moe_folder, recipe, trainer, write_corrections, write_pairs
from transformers import AutoModelForCausalLM

from smolmoe.alignment.run import align, estimate
from smolmoe.errors import CheckpointError, DataError, OutputError, RequestError, SourceError, TrainingError


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moe_folder(tmp_path_factory.mktemp("moe") / "moe")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(dense_llama(), tmp_path_factory.mktemp("dense") / "dense")


def test_equal_pairs_are_left_out_and_counted(tmp_path: Path, moe: Path) -> None:
    file = write_pairs(tmp_path / "pairs.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for row in [row for number, row in enumerate(lines) if number % 4]:
        row["rejected"] = row["chosen"]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    summary = align(recipe(tmp_path, moe, "dpo")).summary
    dropped = summary["dropped"]
    assert dropped["train"]["equal"] + dropped["validation"]["equal"] == 30
    assert summary["rows"]["train"] + summary["rows"]["validation"] == 10
    for row in lines:
        row["rejected"] = row["chosen"]
    file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    with pytest.raises(DataError, match="pairs of equal answers"):
        align(recipe(tmp_path, moe, "cpo"))
    assert not (tmp_path / "cpo").exists()


@pytest.mark.parametrize(
    ("changes", "error", "field", "said"),
    [
        ({"router": "frozzen"}, RequestError, "router", "frozen"),
        ({"data": {"train": ["x"], "held_outt": 0.1}}, RequestError, "data.held_outt", "held_out"),
        ({"trainer": {"learning_rat": 1e-3}}, RequestError, "trainer.learning_rat", "learning_rate"),
        ({"trainer": {"router_aux_loss_coef": 0.1}}, RequestError, "trainer.router_aux_loss_coef", "load_balance"),
        ({"trainer": {"beta": 0.1}}, RequestError, "trainer.beta", "Use beta"),
        ({"trainer": {"loss_type": "nonsense"}}, RequestError, "trainer.loss_type", "Unknown loss type"),
        ({"method": "cpo", "trainer": {"alpha": 0.25}}, RequestError, "trainer.alpha", "Add loss_type: alphapo or"),
        ({"method": "cpo", "trainer": {"alpha": 1, "loss_type": "hinge"}}, RequestError, "trainer.alpha", "hinge"),
        (
            {"method": "cpo", "trainer": {"simpo_gamma": 1.0}},
            RequestError,
            "trainer.simpo_gamma",
            "without loss_type: simpo",
        ),
        ({"router": "free", "objective": {"load_balance": 0.1}}, RequestError, "AlignRecipe", "exclude each other"),
        ({"method": "sft", "beta": 0.1}, RequestError, "AlignRecipe", "preference loss"),
        ({"lora": {"rank": 2, "targets": ["q_prj"]}}, RequestError, "lora.targets", "q_proj"),
        ({"lora": {"experts": True, "dropout": 0.1}}, RequestError, "lora", "no dropout"),
        ({"lora": {"rank": 2}, "routing": {"noise": "learned"}}, RequestError, "AlignRecipe", "do not keep the noise"),
        ({"data": {"train": ["nowhere.jsonl"]}}, DataError, "data", "no such file"),
    ],
)
def test_what_a_recipe_may_not_say(
    tmp_path: Path, moe: Path, changes: dict[str, Any], error: Any, field: str, said: str
) -> None:
    with pytest.raises(error) as caught:
        align({**recipe(tmp_path, moe, "dpo"), **changes})
    assert caught.value.field == field
    assert said in str(caught.value)
    assert not (tmp_path / "dpo" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"router": "frozen"}, "router"),
        ({"objective": {"load_balance": 0.1}}, "objective.load_balance"),
        ({"lora": {"experts": True}}, "lora.experts"),
    ],
)
def test_a_dense_model_takes_no_router_terms(tmp_path: Path, dense: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError, match="dense") as caught:
        align(recipe(tmp_path, dense, "sft", **changes))
    assert caught.value.field == field


def test_rows_that_do_not_fit_the_method(tmp_path: Path, moe: Path) -> None:
    file = write_corrections(tmp_path / "gec.jsonl")
    with pytest.raises(DataError, match='no "chosen"'):
        align(recipe(tmp_path, moe, "dpo", data={"train": [str(file)]}))
    with pytest.raises(DataError, match="none of 40 rows is left for validation"):
        align(recipe(tmp_path, moe, "sft", data={"train": [str(file)], "held_out": 0.001}))
    with pytest.raises(DataError, match="longer than 4 tokens"):
        align(recipe(tmp_path, moe, "sft", data={"train": [str(file)], "length": 4}))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="of 0 rows"):
        align(recipe(tmp_path, moe, "sft", data={"train": [str(tmp_path / "empty.jsonl")]}))


def test_a_length_beyond_the_positions(tmp_path: Path, moe: Path) -> None:
    with pytest.raises(RequestError, match="128 positions"):
        align(recipe(tmp_path, moe, "sft", data=data(tmp_path, length=1000)))
    assert estimate(recipe(tmp_path, moe, "sft", data=data(tmp_path))).rows > 0  # the default is what fits


def test_tokenizers_without_tokens_for_padding_or_the_end(tmp_path: Path, moe: Path) -> None:
    tokenizer = tiny_tokenizer()
    folder = shutil.copytree(moe, tmp_path / "moe")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    result = align(recipe(tmp_path, folder, "cpo"))
    assert AutoModelForCausalLM.from_pretrained(result.model).config.pad_token_id == 1
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(RequestError, match="no end-of-text token"):
        align(recipe(tmp_path, folder, "dpo"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(SourceError, match="no tokenizer"):
        align(recipe(tmp_path, folder, "dpo"))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, moe: Path) -> None:
    folder = shutil.copytree(moe, tmp_path / "moe")
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))  # a number, and too large
    with pytest.raises(TrainingError, match="step 1 is nan"):
        align(recipe(tmp_path, folder, "sft", router="free"))
    assert not (tmp_path / "sft" / "model").exists()


def test_nothing_is_overwritten_unasked(tmp_path: Path, moe: Path) -> None:
    values = recipe(tmp_path, moe, "sft", trainer=trainer(max_steps=1))
    align(values)
    with pytest.raises(OutputError, match="finished"):
        align(values)
    with pytest.raises(OutputError, match="different recipe"):
        align({**values, "seed": 1}, resume="latest")
    with pytest.raises(CheckpointError, match="no best checkpoint is known: up to checkpoint-1 the run measured no"):
        align(values, resume="best")
    align({**values, "seed": 1}, overwrite=True)


def test_a_library_that_is_not_installed(tmp_path: Path, moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(RequestError, match=r"pip install 'smolmoe\[align\]'"):
        align(recipe(tmp_path, moe, "dpo"))
