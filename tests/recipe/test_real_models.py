"""Every shipped recipe that starts from a pretrained model improves it: a real one, at the recipe's own rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import rows

from smolmoe.pipeline.run import run
from smolmoe.recipe import PipelineRecipe, parse
from smolmoe.recipe.files import load, recipes
from smolmoe.surgery.run import upcycle

pytestmark = pytest.mark.slow
STEPS = 4
SHORT = 300  # characters of a row of corrections
BOTH = ["moe-trained", "dense-continued"]
TRAINED = {"cosmopedia-smollm": BOTH[:1], "fair-baselines": BOTH, "grow": BOTH}
ALIGNED = {"gec-sft-dpo": "dpo", "gec-sft-cpo": "cpo"}
# What `specialise` and `quickstart --model` fit to a model: tests/pipeline has their tests.
FITTED = {"specialise-model", "quickstart-model"}
HUB_MODEL = "HuggingFaceTB/"


def pretrained(name: str) -> bool:
    """Whether a recipe names a model of the hub, or asks for one of the user's own."""
    text = json.dumps(load(name))
    return HUB_MODEL in text or '"model": {"path": "model"}' in text


def test_no_recipe_that_names_a_pretrained_model_is_left_out() -> None:
    named = {recipe.name for recipe in recipes() if pretrained(recipe.name)}
    assert named == {*TRAINED, *ALIGNED, *FITTED}


def replaced(values: Any, model: str) -> Any:
    """The recipe's values with this model for the hub's."""
    return json.loads(
        json.dumps(values), object_hook=lambda found: {key: _local(one, model) for key, one in found.items()}
    )


def _local(value: Any, model: str) -> Any:
    return model if isinstance(value, str) and value.startswith(HUB_MODEL) else value


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_lowers_the_held_out_loss_from_its_first_step(
    name: str, smollm2: Path, shared: Path, tmp_path: Path
) -> None:
    """Fewer steps, smaller batches, text from here; the optimiser, its rate and the schedule are the recipe's."""
    values = replaced(load(name), str(smollm2))
    kept = ("moe", *TRAINED[name])
    values["stages"] = [stage for stage in values["stages"] if stage["name"] in kept]
    values["out"] = str(tmp_path / "run")
    for stage in values["stages"]:
        if "upcycle" in stage:
            stage["upcycle"] |= {"experts": 4, "verify": "none"}
            continue
        train = stage["train"]
        train["data"] = {"sources": [{"path": str(shared / "data" / "cosmopedia_relabelled.jsonl")}], "held_out": 0.1}
        train["data"] |= {"length": 256, "cache": str(tmp_path / "cache")}
        train["evaluation"] = {"tokens": 3000, "at": [0, 1, STEPS], "every": STEPS}
        train["samples"], train["device"] = {}, "cpu"
        warm = {"warmup_steps": 2} if name != "cosmopedia-smollm" else {}
        train.setdefault("trainer", {}).update(
            max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2, save_strategy="no", **warm
        )
    recipe = parse(PipelineRecipe, values)
    run(recipe)
    for stage in TRAINED[name]:
        losses = [row["loss"] for row in rows(recipe.out / stage, "held_out")]
        assert len(losses) == 3
        assert losses == sorted(losses, reverse=True), (stage, losses)
        assert losses[-1] < losses[0] - 0.02, (stage, losses)


@pytest.fixture(scope="module")
def moe(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "moe"
    upcycle(smollm2, out, experts=4, top_k=2, verify="none")
    return out


@pytest.mark.parametrize(("name", "method"), ALIGNED.items())
def test_an_alignment_lowers_the_held_out_loss(name: str, method: str, moe: Path, shared: Path, tmp_path: Path) -> None:
    """Few and short rows, few steps; the method, its rate and its batches are the recipe's."""
    lines = (shared / "data" / "gec_coedit_rows.jsonl").read_text(encoding="utf-8").splitlines()
    short = [line for line in lines if len(line) < SHORT]
    learn, held_out = tmp_path / "train.jsonl", tmp_path / "held-out.jsonl"
    learn.write_text("\n".join(short[:60]), encoding="utf-8")
    held_out.write_text("\n".join(short[60:80]), encoding="utf-8")
    values = load(name)
    sft, pairs, preferred = (
        stage[kind] for stage, kind in zip(values["stages"], ("align", "pairs", "align"), strict=True)
    )
    sft["model"]["path"], sft["data"] = str(moe), {**sft["data"], "train": [str(learn)], "validation": [str(held_out)]}
    pairs |= {"data": str(learn), "prompts": 30, "max_new_tokens": 30}
    preferred["data"] |= {"corrections": None, "held_out": 0.2}
    for stage in (sft, preferred):
        stage |= {"answers": 0, "device": "cpu"}
        stage["trainer"] |= {"max_steps": 3}
    values["out"] = str(tmp_path / "run")
    found = run(parse(PipelineRecipe, values)).stages
    for stage in ("sft", method):
        before, after = (found[stage]["result"][when]["loss"] for when in ("before", "after"))
        assert after < before, (stage, before, after)
