"""A model whose tokenizer pads with its end-of-text token: its config says nothing of it, and must not begin to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, moe_of, save, tiny_tokenizer
from safetensors.torch import load_file
from tests.alignment import runs as align_runs
from tests.training.runs import recipe, rows, trainer

from smolmoe.alignment.run import align
from smolmoe.moe.loading import load_tokenizer
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.surgery.run import upcycle
from smolmoe.training.models import new_config
from smolmoe.training.run import train

KINDS = ("dense", "moe", "generic")
# As Llama-2-chat has it: transformers saves such a file only as it was read.
GENERATION = {"eos_token_id": [0, 5], "temperature": 0.9, "top_p": 0.6}
DRAWN = {"noise": "learned", "sample": True, "expert_dropout": 0.1}  # by the routers


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    dense = dense_llama(pad_token_id=None, attention_dropout=0.1, tie_word_embeddings=False)
    moe = moe_of(dense)
    moe.config.attention_dropout = 0.1
    found = {"dense": save(dense, folder / "dense"), "moe": save(moe, folder / "moe"), "generic": folder / "generic"}
    upcycle(found["dense"], found["generic"], experts=4, top_k=2, target="generic", verify="none")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    for source in found.values():
        tokenizer.save_pretrained(source)
        (source / "generation_config.json").write_text(json.dumps(GENERATION), encoding="utf-8")
    return found


def settings(folder: Path) -> dict[str, Any]:
    """What trainers set for themselves, as the folder's configs have it."""
    config, generation = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    tokens = config.get("text_config", config)
    own = {name: tokens.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    own["use_cache"] = config.get("use_cache", True)
    return own | {name: generation.get(name) for name in (*GENERATION, "bos_token_id", "pad_token_id", "use_cache")}


def interrupted(run: Path, out: Path, last: str) -> None:
    """The folder of a run as a kill before its last checkpoint leaves it."""
    shutil.copytree(run, out, ignore=shutil.ignore_patterns(last, "model", "summary.json"))


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def short_text(path: Path) -> None:
    """Many ends of text: each document is a few words."""
    words = ("the sum", "of three", "and four", "is seven", "as everyone", "can see")
    lines = [json.dumps({"text": f"{number} {words[number % 6]}", "domain": "prose"}) for number in range(300)]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_one_that_was_interrupted(tmp_path: Path, sources: Any, kind: str) -> None:
    short_text(tmp_path / "text.jsonl")
    values = recipe(tmp_path, sources[kind], trainer=trainer(save_steps=3), evaluation={"tokens": 200, "every": 3})
    if kind != "dense":
        values |= {"routing": DRAWN, "objective": {"load_balance": 0.01}}
    whole = train({**values, "out": str(tmp_path / "whole")})
    interrupted(whole.out, tmp_path / "run", "checkpoint-6")
    again = train(values, resume="latest")
    assert rows(again.out, "step") == rows(whole.out, "step")
    assert_same_weights(again.model, whole.model)
    wanted = settings(sources[kind])
    assert wanted["pad"] is None
    for folder in (whole.out / "checkpoints" / "checkpoint-3", whole.model, again.model):
        assert settings(folder) == wanted


@pytest.mark.parametrize(("method", "lora"), [("sft", None), ("dpo", None), ("cpo", None), ("sft", {"rank": 2})])
def test_a_resumed_alignment_is_the_one_that_was_interrupted(
    tmp_path: Path, sources: Any, method: str, lora: Any
) -> None:
    changes = {"lora": lora, "routing": {"noise": 0.1}, "trainer": align_runs.trainer(save_steps=2)}
    values = align_runs.recipe(tmp_path, sources["moe"], method, **changes)
    whole = align({**values, "out": str(tmp_path / "whole")})
    interrupted(whole.out, tmp_path / method, "checkpoint-4")
    again = align(values, resume="latest")
    assert rows(again.out, "step") == rows(whole.out, "step")
    assert_same_weights(again.model, whole.model)
    saved = [whole.model] if lora else [whole.model, whole.out / "checkpoints" / "checkpoint-2"]
    for folder in saved:
        assert settings(folder) == settings(sources["moe"])


def test_a_tokenizer_without_a_padding_token_is_saved_as_it_was(tmp_path: Path, sources: Any) -> None:
    source = tmp_path / "source"
    shutil.copytree(sources["moe"], source)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(source)
    result = align(align_runs.recipe(tmp_path, source, "sft", trainer=align_runs.trainer(max_steps=1)))
    assert load_tokenizer(result.model).pad_token is None


def test_a_new_model_learns_the_embedding_of_its_end_of_text(tmp_path: Path) -> None:
    """transformers would begin it with zeros and keep it there."""
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    values = recipe(tmp_path, None) | {"model": {"config": config}}
    tokenizer = tiny_tokenizer()
    assert new_config(parse(TrainRecipe, values).model, tokenizer, 32).pad_token_id == 1
    tokenizer.pad_token = tokenizer.eos_token
    assert new_config(parse(TrainRecipe, values).model, tokenizer, 32).pad_token_id is None


def test_the_rate_of_a_row_is_that_of_its_step(tmp_path: Path, sources: Any) -> None:
    linear = {"lr_scheduler_type": "linear", "warmup_steps": 2, "learning_rate": 0.008, "logging_steps": 1}
    wanted = [0.0, 0.004, 0.008, 0.006, 0.004, 0.002]
    trained = train(recipe(tmp_path, sources["dense"], trainer=trainer(**linear)))
    assert [row["learning_rate"] for row in rows(trained.out, "window")] == pytest.approx(wanted)
    values = align_runs.recipe(tmp_path, sources["dense"], "sft", trainer=trainer(**linear))
    assert [row["learning_rate"] for row in rows(align(values).out, "window")] == pytest.approx(wanted)
