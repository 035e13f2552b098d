"""Every shipped recipe is run, at a reduced size; what it is at its own size is checked without running."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer
from tests.training.runs import dense_folder, moe_folder, write_text
from transformers import AutoModelForCausalLM

from smolmoe.errors import OutputError, RequestError
from smolmoe.moe import register
from smolmoe.pipeline.forecast import forecast
from smolmoe.pipeline.resolve import resolved
from smolmoe.pipeline.run import run
from smolmoe.recipe import PipelineRecipe, TrainRecipe, parse
from smolmoe.recipe.files import copy_recipe, load, merge, recipes
from smolmoe.training.estimate import estimate
from smolmoe.training.run import train

NAMES = {kind: [recipe.name for recipe in recipes() if recipe.kind == kind] for kind in ("train", "pipeline")}
STEPS = 3
# Small values of the sizes that recipes give, by the name of the key.
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "moe_intermediate_size": 24,
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 1,
    "tie_groups": 2,
    "boundary": 2,
    "new_tokens": 2,
    "length": 32,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a tokenizer and a dense model, small and here, for those that recipes fetch."""
    folder = tmp_path_factory.mktemp("recipes")
    write_text(folder / "text.jsonl", domains=("code", "prose", "math"))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    dense_folder(folder / "dense")
    moe_folder(folder / "moe")
    for name, words in (("corrections", "abcdefghijklmnop"), ("held-out", "uvwxyz")):
        rows = [{"src": f"Fix grammar: the {word} are here", "tgt": f"the {word} is here"} for word in words]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def reduced(name: str, place: Path, out: Path) -> list[str]:
    """The changes that make a recipe run in a second on what is here."""
    values = load(name)
    local = {
        "sources": [{"path": str(place / "text.jsonl")}],
        "tokenizer": str(place / "tokenizer"),
        "source": str(place / "dense"),
        "path": str(place / "dense"),
        "prompts": ["the sum"],
    }
    changes = dict(_replaced(values, {**SIZES, **local}))
    section = "defaults." if "stages" in values else ""
    changes |= {
        f"{section}data.length": 32,
        f"{section}data.held_out": 0.2,
        f"{section}data.cache": str(place / "cache"),
        f"{section}evaluation": {"tokens": 200, "at": [1, 2]},
        f"{section}trainer.logging_steps": 1,
        f"{section}trainer.report_to": "none",
        f"{section}samples.new_tokens": 2,
        f"{section}device": "cpu",
        "out": str(out),
    }
    if name.startswith("gec-"):
        changes |= _correcting(name.removeprefix("gec-sft-"), place)
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _correcting(method: str, place: Path) -> dict[str, Any]:
    """The user's own model and corrections, as the recipe's first lines say, and what keeps it short."""
    file, held_out = str(place / "corrections.jsonl"), str(place / "held-out.jsonl")
    short = {"max_steps": 2, "report_to": "none"}
    return {
        "stages.sft.align.model.path": str(place / "moe"),
        "stages.sft.align.data.train": [file],
        "stages.sft.align.data.validation": [held_out],
        "stages.sft.align.data.length": 60,
        "stages.sft.align.answers": 2,
        "stages.sft.align.trainer": short,
        "stages.sft.align.device": "cpu",
        "stages.pairs.pairs.data": file,
        "stages.pairs.pairs.prompts": 16,
        "stages.pairs.pairs.max_new_tokens": 6,
        f"stages.{method}.align.data.corrections": held_out,
        f"stages.{method}.align.data.held_out": 0.3,
        f"stages.{method}.align.data.length": 60,
        f"stages.{method}.align.answers": 2,
        f"stages.{method}.align.trainer": short,
        f"stages.{method}.align.device": "cpu",
    }


def _replaced(values: Any, small: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> small value, for every key that has one and stands for something outside of the recipe."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        name = value.get("name", key) if isinstance(values, list) and isinstance(value, dict) else key
        here = f"{path}.{name}" if path else str(name)
        refers = re.search(r"\{[a-z]", json.dumps(value)) is not None
        if str(key) in small and value and not refers:
            yield here, 280 if isinstance(value, int) and key == "tokenizer" else small[str(key)]
        elif isinstance(value, dict | list) and key != "prompts":
            yield from _replaced(value, small, here)


def alike(kind: str) -> list[Any]:
    """The recipes of a kind, those that are one and the same once they are reduced as one case."""
    groups: dict[str, list[str]] = {}
    for name in NAMES[kind]:
        values = load(name, reduced(name, Path("place"), Path("out")))
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(name)
    return [pytest.param(names[0], id=" ".join(names)) for names in groups.values()]


@pytest.mark.parametrize("name", alike("train"))
def test_a_shipped_training_runs(name: str, place: Path, tmp_path: Path) -> None:
    recipe = parse(TrainRecipe, load(name, reduced(name, place, tmp_path / "run")))
    summary = train(recipe).summary
    assert summary["steps"] == STEPS
    assert summary["tokens"] == STEPS * 4 * 32
    assert summary["parameters"]["total"] < 200_000
    assert summary["parameters"]["active"] < summary["parameters"]["total"]
    assert summary["samples"]
    register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.config.num_experts == 16


@pytest.mark.parametrize("name", alike("pipeline"))
def test_a_shipped_pipeline_runs(name: str, place: Path, tmp_path: Path) -> None:
    recipe = parse(PipelineRecipe, load(name, reduced(name, place, tmp_path / "run")))
    result = run(recipe)
    values = resolved(recipe)
    for stage in recipe.stages:
        record = result.stages[stage.name]
        assert record["done"]
        found = record["result"]
        if stage.kind == "train":
            assert found["parameters"]["total"] < 200_000
            assert found["steps"] == STEPS or stage.match_flops
            assert (recipe.out / stage.name / "model" / "config.json").is_file()
        elif stage.kind == "upcycle":
            assert found["verification"]["passed"]
        elif stage.kind == "probe":
            assert Path(found["page"]).stat().st_size > 50_000
            assert (Path(found["page"]).parent / "probe.json").is_file()
        elif stage.kind == "select":
            rows = (recipe.out / stage.name / "rows.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(rows) == found["rows"] > 0
        elif stage.kind == "pairs":
            assert (recipe.out / stage.name / "pairs.jsonl").stat().st_size > 0
        elif stage.kind == "align":
            assert found["after"]["loss"] != found["before"]["loss"]
            assert (recipe.out / stage.name / "model" / "config.json").is_file()
        elif stage.kind == "corpus":
            least = 10_000 if stage.corpus and "sources" in stage.corpus else 100_000
            assert (recipe.out / stage.name / "train.jsonl").stat().st_size > least
        elif stage.kind == "compare":
            assert len(found["models"]) == 3
        elif stage.kind == "generate":
            assert [answer["prompt"] for answer in found["answers"]] == ["the sum"]
        elif stage.kind == "page":
            assert Path(found["page"]).stat().st_size > 50_000
        elif stage.kind == "doctor":
            assert found["worst"] != "error"
        else:
            assert (recipe.out / stage.name / "growth.png").stat().st_size > 10_000
            jumps = [row["jump"] for row in found["after"].values() if row["jump"] is not None]
            assert jumps or values[stage.name]["before"] is None
            assert all(abs(jump) < 1e-4 for jump in jumps), jumps
            assert f"\n{next(iter(values[stage.name]['after']))} " in found["text"]


@pytest.mark.parametrize("name", NAMES["pipeline"])
def test_what_goes_on_training_sees_text_that_its_model_has_not(name: str) -> None:
    recipe = parse(PipelineRecipe, load(name))
    values = resolved(recipe)
    read = {}  # run folder's model -> blocks that were read or passed over for it
    for stage in recipe.stages:
        if stage.kind != "train":
            continue
        mine = values[stage.name]
        source = mine["model"].get("path")
        before = read.get(source, read.get(str(recipe.out / "dense" / "model"), 0))
        skip = mine["data"].get("skip", 0)
        # A baseline of a model from elsewhere reads the text of the training that it is compared with.
        assert skip == before or (not before and skip in read.values()), stage.name
        trainer = mine["trainer"]
        blocks = before + trainer["max_steps"] * trainer.get("per_device_train_batch_size", 8)
        read[str(recipe.out / stage.name / "model")] = blocks


@cache
def _sizes(name: str, tokenizer: str) -> dict[str, tuple[int, int]]:
    """Parameters, total and active, of every model that a recipe makes."""
    if name in NAMES["train"]:
        size = estimate(parse(TrainRecipe, load(name, [f"tokenizer={tokenizer}", "device=cpu"]))).size
        return {"": (size.total, size.active)}
    changes = [f"defaults.tokenizer={tokenizer}", "defaults.device=cpu"]
    stages = forecast(parse(PipelineRecipe, load(name, changes)))
    return {stage.name: (stage.total, stage.active) for stage in stages if stage.total and stage.active}


@pytest.mark.parametrize(
    ("name", "stage", "total", "active"),
    [
        ("tinystories-moe", "", 158e6, None),
        ("tinystories-moe-ctx2048", "", 159e6, None),
        ("tinystories-moe-512m", "", 512e6, None),
        ("tinystories-moe-1b", "", 1.01e9, None),
        ("tinystories-100m-simple", "dense", 100e6, 100e6),
        ("tinystories-100m-simple", "moe", 372e6, 139e6),
        ("tinystories-100m-simple", "moe-trained", 372e6, 139e6),
        ("tinystories-100m", "dense", 119e6, 119e6),
        ("tinystories-16m", "dense", 17.1e6, 17.1e6),
        ("tinystories-16m-simple", "dense", 16.1e6, 16.1e6),
    ],
)
def test_sizes_are_those_that_recipes_say(
    shared: Path, name: str, stage: str, total: float, active: float | None
) -> None:
    found = _sizes(name, str(shared / "tokenizers" / "gpt2"))[stage]
    assert found[0] == pytest.approx(total, rel=0.01)
    if active is not None:
        assert found[1] == pytest.approx(active, rel=0.01)


@pytest.mark.parametrize("name", [recipe.name for recipe in recipes() if "parameters" in recipe.about])
def test_the_size_in_a_recipes_first_line_is_the_models(shared: Path, name: str) -> None:
    about = next(recipe.about for recipe in recipes() if recipe.name == name)
    said, digits, unit = re.search(r"((?:\d+\.)?(\d+))([MB]) parameters", about).groups()
    ((total, _),) = _sizes(name, str(shared / "tokenizers" / "gpt2")).values()
    places = len(digits) if "." in said else 0
    assert f"{total / {'M': 1e6, 'B': 1e9}[unit]:.{places}f}" == said


def test_what_the_issue_asks_of_tinystories() -> None:
    """50,000 stories, 1,000 + 1,000 steps, batch 8, 8 experts top-2, 3e-4 then 1e-4, blocks of 256."""
    values = resolved(parse(PipelineRecipe, load("tinystories-100m")))
    assert values["dense"]["data"]["sources"] == [{"preset": "tinystories", "rows": 50000}]
    for stage, rate in (("dense", 3e-4), ("moe-trained", 1e-4)):
        trainer = values[stage]["trainer"]
        assert (trainer["max_steps"], trainer["per_device_train_batch_size"]) == (1000, 8)
        assert trainer["learning_rate"] == rate
        assert values[stage]["data"]["length"] == 256
    assert (values["moe"]["experts"], values["moe"]["top_k"]) == (8, 2)


# -- files -----------------------------------------------------------------------------------------------------------


def test_a_change_of_what_was_shared_by_an_alias_changes_one() -> None:
    values = load("tinystories-16m", ["stages.moe-trained.train.trainer.max_steps=7"])
    steps = {stage["name"]: stage["train"]["trainer"]["max_steps"] for stage in values["stages"] if "train" in stage}
    assert steps == {"dense": 1000, "moe-trained": 7, "moe-fresh": 1000, "dense-continued": 1000}


def test_changes_are_yaml_with_numbers_as_people_write_them() -> None:
    changes = ["trainer.learning_rate=1e-4", "objective={load_balance: 2e-2}", "samples.prompts=[a, 1e5]", "carry=null"]
    values = load("tinystories-moe", changes)
    assert values["trainer"]["learning_rate"] == 1e-4
    assert values["objective"] == {"load_balance": 0.02}
    assert values["samples"]["prompts"] == ["a", 1e5]
    assert values["carry"] is None
    assert load("tinystories-moe", ["data.sources.0.rows=5"])["data"]["sources"] == [
        {"preset": "tinystories", "rows": 5}
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trainer.max_steps", "section.key=value"),
        ("=3", "section.key=value"),
        ("trainer.max_steps=[1", "not YAML"),
        ("seed.value=1", "no keys"),
        ("data.sources.3.rows=5", "It has 0"),
    ],
)
def test_changes_that_lead_nowhere(change: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load("tinystories-moe", ["seed=0", change])


def test_a_stage_that_is_not_there_is_named() -> None:
    with pytest.raises(RequestError, match="It has dense, moe, moe-trained"):
        load("tinystories-16m", ["stages.moee.upcycle.experts=4"])


def test_extending(tmp_path: Path) -> None:
    """Sections are merged, stages by name; null takes away; what is extended lies beside the file, or is shipped."""
    (tmp_path / "base.yaml").write_text("extends: tinystories-16m\ndefaults: {data: {length: 128}}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: base.yaml\nstages:\n  dense: {train: {trainer: {warmup_steps: null}}}\n  moe-fresh: null\n"
        "  boundary: {report: {after: {'MoE, fresh optimiser': null}}}\n"
    )
    recipe = parse(PipelineRecipe, load(str(mine)))
    assert [stage.name for stage in recipe.stages] == ["dense", "moe", "moe-trained", "dense-continued", "boundary"]
    values = resolved(recipe)
    assert values["dense"]["data"]["length"] == 128
    assert "warmup_steps" not in values["dense"]["trainer"]
    assert str(recipe.out) == "runs/mine"
    mine.write_text("extends: base.yaml\nstages: {dence: {}}\n")
    with pytest.raises(RequestError, match="It has dense, moe, moe-trained"):
        load(str(mine))
    mine.write_text("extends: mine.yaml\n")
    with pytest.raises(RequestError, match="extends itself"):
        load(str(mine))


def test_merge_of_unnamed_items_is_refused() -> None:
    with pytest.raises(RequestError, match="give the whole list"):
        merge({"sources": [{"path": "a"}]}, {"sources": {"a": {"rows": 1}}})


@pytest.mark.parametrize(("text", "said"), [("a: [", "not YAML"), ("- a", "mapping"), ("\xff", "mapping")])
def test_files_that_are_no_recipes(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        load(str(tmp_path / "bad.yaml"))


def test_names(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="Did you mean 'tinystories-moe-1b'"):
        load("tinystories-moe-1bn")
    with pytest.raises(RequestError, match="no such file"):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(RequestError, match="`smolmoe run embedded`"):
        load("embedded", kind="train")
    with pytest.raises(RequestError, match="`smolmoe train tinystories-moe`"):
        load("tinystories-moe", kind="pipeline")


def test_a_copy_says_the_same(tmp_path: Path) -> None:
    for recipe in recipes():
        target = copy_recipe(recipe.name, tmp_path / f"{recipe.name}.yaml")
        assert load(str(target)) == load(recipe.name)
        assert recipe.about
    with pytest.raises(OutputError, match="exists already"):
        copy_recipe("embedded", tmp_path / "embedded.yaml")
    with pytest.raises(OutputError, match="cannot be written"):
        copy_recipe("embedded", tmp_path / "no" / "embedded.yaml")
