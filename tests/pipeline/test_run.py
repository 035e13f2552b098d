"""Pipelines: what is done stays, what was interrupted goes on, what was changed is refused, what is named is found."""

from __future__ import annotations

import gc
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer
from tests.processes import Child, killed_in, run_ranks
from tests.training.runs import rows, trainer, write_text

from smolmoe.errors import OutputError, RequestError
from smolmoe.pipeline.forecast import forecast
from smolmoe.pipeline.resolve import resolved
from smolmoe.pipeline.run import PipelineResult, run
from smolmoe.recipe import PipelineRecipe, parse
from smolmoe.training.trainer import MoeTrainer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}
CHILD = """
import json, sys, torch
torch.set_num_threads(1)
from smolmoe.pipeline.run import run
from smolmoe.recipe import PipelineRecipe, parse
run(parse(PipelineRecipe, json.loads(sys.argv[1])))
"""


def pipeline(folder: Path, *stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Values of a pipeline in `folder / "run"`: a dense model, and the stages given."""
    if not (folder / "tokenizer").is_dir():
        write_text(folder / "text.jsonl")
        tiny_tokenizer().save_pretrained(folder / "tokenizer")
    data = {"sources": [{"path": str(folder / "text.jsonl")}], "length": 32, "held_out": 0.2}
    defaults = {
        "data": {**data, "cache": str(folder / "cache")},
        "evaluation": {"tokens": 200},
        "trainer": trainer(),
        "device": "cpu",
    }
    dense = {"name": "dense", "train": {"model": {"config": LLAMA}, "tokenizer": str(folder / "tokenizer")}}
    return {"defaults": defaults, "stages": [dense, *stages], "out": str(folder / "run"), **changes}


def upcycle(**options: Any) -> dict[str, Any]:
    return {"name": "moe", "upcycle": {"source": "{dense}", "experts": 4, "top_k": 2, "verify": "none", **options}}


def trained(name: str, source: str, **section: Any) -> dict[str, Any]:
    return {"name": name, "train": {"model": {"path": source}, **section}}


def go(values: dict[str, Any], **options: Any) -> PipelineResult:
    return run(parse(PipelineRecipe, values), **options)


def made(result: PipelineResult) -> list[str]:
    return [name for name, record in result.stages.items() if record["done"]]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle(), trained("moe-trained", "{moe}"))
    first = go(values)
    assert made(first) == ["dense", "moe", "moe-trained"]
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = go(values)
    assert made(again) == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == written
    assert again.stages["moe-trained"]["result"] == json.loads(json.dumps(first.stages["moe-trained"]["result"]))


def test_a_finished_stage_leaves_no_model_in_memory(tmp_path: Path) -> None:
    """A Trainer and its model refer to each other: without collection they stay while the next stage runs."""
    gc.disable()
    try:
        go(pipeline(tmp_path))
        trainers = [found for found in gc.get_objects() if isinstance(found, MoeTrainer)]
    finally:
        gc.enable()
    assert trainers == []


def test_from_a_stage_on_all_is_done_again(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle(), trained("moe-trained", "{moe}"), trained("dense-continued", "{dense}"))
    go(values)
    values["stages"][1] = upcycle(experts=6)
    result = go(values, start="moe")
    assert made(result) == ["moe", "moe-trained", "dense-continued"]
    config = json.loads((tmp_path / "run" / "moe-trained" / "model" / "config.json").read_text())
    assert config["num_local_experts"] == 6
    with pytest.raises(RequestError, match="Stages: dense, moe, moe-trained, dense-continued"):
        go(values, start="moee")


def test_doing_a_stage_again_loses_no_file_of_the_users(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle())
    go(values)
    out = tmp_path / "run"
    mine = [out / "moe" / "notes.txt", out / "dense" / "checkpoints" / "mine" / "model.safetensors"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        there = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
        with pytest.raises(OutputError, match=f"{path.name}.*did not write there") as caught:
            go(values, start=path.relative_to(out).parts[0])
        assert "Move it away" in (caught.value.fix or "")
        assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == there
        path.unlink()
    (out / "stages" / "moe.json").write_text("{")  # a damaged record is no reason not to do it again
    assert made(go(values, start="dense")) == ["dense", "moe"]


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle(), trained("moe-trained", "{moe}"))
    values["defaults"]["trainer"] |= {"max_steps": 25, "save_steps": 5, "save_total_limit": 20}
    whole = go({**values, "out": str(tmp_path / "whole")})
    killed = killed_in("smolmoe.training.checkpoints:AtomicCheckpoints._save_checkpoint", 3)
    with Child(killed + CHILD, json.dumps(values)) as child:
        assert child.wait() == -signal.SIGKILL, child.stderr
    assert not (tmp_path / "run" / "stages" / "dense.json").exists()
    manifests = [*(tmp_path / "run" / "dense" / "checkpoints").glob("*/manifest.json")]
    assert len(manifests) == 2
    written = [manifest.stat().st_mtime_ns for manifest in manifests]
    result = go(values)
    assert [manifest.stat().st_mtime_ns for manifest in manifests] == written, "it began anew"
    assert made(result) == ["dense", "moe", "moe-trained"]
    for stage in ("dense", "moe-trained"):
        assert rows(result.out / stage, "step") == rows(whole.out / stage, "step")


def test_another_recipe_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle())
    go(values)
    values["stages"].append(trained("moe-trained", "{moe}"))
    values["stages"][1] = upcycle(experts=8)
    with pytest.raises(OutputError, match="experts: 4 there, 8 here") as caught:
        go(values)
    assert caught.value.value == "moe"
    assert "start='moe'" in (caught.value.fix or "")
    values["defaults"]["seed"] = 1
    with pytest.raises(OutputError, match="seed: None there, 1 here"):
        go(values)
    assert not (tmp_path / "run" / "moe-trained").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    for start in (None, "dense"):
        with pytest.raises(OutputError, match="something other than a pipeline"):
            go(pipeline(tmp_path), start=start)
    assert os.listdir(tmp_path / "run") == ["mine.txt"]


@pytest.mark.parametrize(
    ("stage", "field", "said"),
    [
        (trained("a", "{none}"), "stages.a.train.reference", "There are dense, moe"),
        (trained("a", "{a}"), "stages.a.train.reference", "There are dense, moe"),
        (trained("a", "{moe.run}"), "stages.a.train.reference", "There are dense."),
        (trained("a", "{dense}", data={"skip": "{moe.blocks}"}), "stages.a.train.reference", "There are dense."),
        ({**trained("a", "{dense}"), "match_flops": "moe"}, "stages.a.train.reference", "There are dense."),
        ({"name": "a", "report": {"after": {"x": "moe"}}}, "stages.a.report.reference", "There are dense."),
        (trained("a", "{dense}", objectiv={}), "stages.a.train.objectiv", "Did you mean 'objective'"),
        (trained("a", "{dense}", trainer={"max_steps": -1}), "", ""),
    ],
)
def test_references_lead_back(tmp_path: Path, stage: dict[str, Any], field: str, said: str) -> None:
    recipe = parse(PipelineRecipe, pipeline(tmp_path, upcycle(), stage))
    if not field:
        recipe = parse(PipelineRecipe, pipeline(tmp_path, stage, trained("b", "{a}", data={"skip": "{a.blocks}"})))
        field, said = "stages.b.train.reference", "Give a trainer.max_steps"
    with pytest.raises(RequestError, match=said) as caught:
        resolved(recipe)
    assert caught.value.field == field


def test_references_are_folders_and_numbers(tmp_path: Path) -> None:
    onward = trained("on", "{dense}", carry={"optimizer": "{dense.run}"}, data={"skip": "{dense.blocks}"})
    further = trained("further", "{on}", data={"skip": "{on.blocks}"})
    values = resolved(parse(PipelineRecipe, pipeline(tmp_path, upcycle(), onward, further)))
    run_folder = tmp_path / "run"
    assert values["moe"]["source"] == str(run_folder / "dense" / "model")
    assert values["on"]["model"]["path"] == str(run_folder / "dense" / "model")
    assert values["on"]["carry"]["optimizer"] == str(run_folder / "dense")
    assert values["on"]["data"]["skip"] == 6 * 4
    assert values["further"]["data"]["skip"] == 2 * 6 * 4


def test_the_model_to_begin_with_is_named_once(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle(), trained("on", "{source}"))
    values |= {"source": "owner/model", "stages": values["stages"][1:]}
    values["stages"][0]["upcycle"]["source"] = "{source}"
    found = resolved(parse(PipelineRecipe, values))
    assert found["moe"]["source"] == found["on"]["model"]["path"] == "owner/model"
    with pytest.raises(RequestError, match="no stage can be called 'source'"):
        parse(PipelineRecipe, {**values, "stages": [*values["stages"], trained("source", "{moe}")]})
    del values["source"]
    with pytest.raises(RequestError, match="no stage before this one has the name 'source'"):
        resolved(parse(PipelineRecipe, values))


def test_one_stage_has_one_kind_and_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="exactly one of import_model, train, upcycle, probe, select"):
        parse(PipelineRecipe, pipeline(tmp_path, {"name": "a"}))
    with pytest.raises(RequestError, match="two stages are called 'dense'"):
        parse(PipelineRecipe, pipeline(tmp_path, trained("dense", "x")))


def test_equal_flops_are_equal_to_a_step_and_foreseen(tmp_path: Path) -> None:
    """The forecast is what the run then counts, for models that were not there when it was made."""
    values = pipeline(
        tmp_path,
        upcycle(granularity=2, experts=8, top_k=4),
        trained("moe-trained", "{moe}", trainer={"max_steps": 9}),
        {**trained("dense-equal", "{dense}"), "match_flops": "moe-trained"},
    )
    foreseen = forecast(parse(PipelineRecipe, values))
    assert not (tmp_path / "run").exists()
    found = {name: record["result"] for name, record in go(values).stages.items()}
    a_step = found["dense-equal"]["flops"] / found["dense-equal"]["steps"]
    assert abs(found["dense-equal"]["flops"] - found["moe-trained"]["flops"]) <= a_step / 2
    assert found["dense-equal"]["steps"] > 9
    for stage in foreseen:
        if stage.costs is not None:
            assert stage.costs.flops == found[stage.name]["flops"]
            assert stage.costs.steps == found[stage.name]["steps"]
            assert stage.costs.size.to_json() == found[stage.name]["parameters"]
        else:
            assert stage.total == found[stage.name]["parameters"]["moe"]["total"]
            assert stage.active == found[stage.name]["parameters"]["moe"]["active"]


def test_the_generic_model_is_foreseen_too(tmp_path: Path) -> None:
    values = pipeline(tmp_path, upcycle(), trained("moe-trained", "{moe}"), trained("further", "{moe-trained}"))
    values["stages"][0]["train"]["model"] = {"config": GPT2}
    dense, moe, trained_, further = forecast(parse(PipelineRecipe, values))
    assert dense.total is not None
    assert moe.total is not None
    assert moe.total > dense.total
    assert trained_.total == further.total
    assert trained_.total == pytest.approx(moe.total, abs=8)  # the conversion counts selection biases, too
    assert trained_.values["model"]["path"] == str(tmp_path / "run" / "moe")


@pytest.mark.slow
def test_two_processes_train_together_and_one_does_the_rest(tmp_path: Path) -> None:
    onward = trained("moe-trained", "{moe}", data={"skip": "{dense.blocks}"}, carry={"optimizer": "{dense.run}"})
    report = {"name": "growth", "report": {"before": "dense", "after": {"MoE": "moe-trained"}}}
    (tmp_path / "line.yaml").write_text(json.dumps(pipeline(tmp_path, upcycle(), onward, report)))
    code = "import runpy, sys; sys.argv[1:1] = ['run']; runpy.run_module('smolmoe', run_name='__main__')"
    printed = run_ranks(code, tmp_path / "line.yaml")
    assert "held-out loss (nats per token)" in printed[0]
    assert printed[1] == ""
    summary = json.loads((tmp_path / "run" / "moe-trained" / "summary.json").read_text())
    assert summary["tokens"] == 2 * 6 * 4 * 32
    record = json.loads((tmp_path / "run" / "moe-trained" / "run.json").read_text())
    assert record["recipe"]["data"]["skip"] == 2 * 6 * 4
