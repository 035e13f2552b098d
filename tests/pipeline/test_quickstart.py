"""The quickstart from end to end, much reduced: what it writes holds together and is what it says."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import rows

from smolmoe.cli.calling import me
from smolmoe.cli.quickstart import show_quickstart
from smolmoe.core.json_text import read_json
from smolmoe.data.text import read_documents
from smolmoe.errors import OutputError
from smolmoe.pipeline import summary
from smolmoe.pipeline.quickstart import quickstart
from smolmoe.pipeline.run import PipelineResult
from smolmoe.reports.overview import find

DENSE, MOE = 30, 6
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CHANGES = [
    "stages.corpus.corpus.megabytes=0.8",
    "defaults.tokenizer=512",
    "defaults.data.length=64",
    "defaults.evaluation.tokens=600",
    *(f"stages.dense.train.model.config.{key}={value}" for key, value in CONFIG.items()),
    f"stages.dense.train.trainer.max_steps={DENSE}",
    *(f"stages.{name}.train.trainer.max_steps={MOE}" for name in ("moe-trained", "dense-trained")),
    "stages.probe.probe.tokens=300",
    "stages.probe.probe.loss_tokens=100",
]


def go(out: Path, **options: Any) -> PipelineResult:
    return quickstart(out, **{"changes": CHANGES, "minutes": 100, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> PipelineResult:
    return go(tmp_path_factory.mktemp("quickstart") / "run")


def result(run: PipelineResult, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = run.stages[stage]["result"]
    return found


def hashes(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_everything_is_in_the_folder(run: PipelineResult) -> None:
    for name in ("dense/model", "moe", "moe-trained/model", "dense-trained/model"):
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert (run.out / name / file).is_file(), (name, file)
    for name in ("corpus/train.jsonl", "corpus/validation.jsonl", "boundary/growth.png"):
        assert (run.out / name).is_file(), name
    assert Path(result(run, "probe")["page"]).is_file()
    assert not list(run.out.rglob("*.partial"))


def test_the_conversion_is_verified_and_leaves_the_loss_alone(run: PipelineResult) -> None:
    assert result(run, "moe")["verification"]["passed"]
    assert result(run, "moe")["target"] == "mixtral"
    assert all(abs(row["jump"]) < 1e-5 for row in result(run, "boundary")["after"].values())
    assert result(run, "doctor")["worst"] != "error"


def test_training_lowers_the_held_out_loss(run: PipelineResult) -> None:
    loss = {name: result(run, name)["held_out"]["loss"] for name in ("dense", "moe-trained", "dense-trained")}
    assert loss["dense"] < math.log(512)
    assert max(loss["moe-trained"], loss["dense-trained"]) < loss["dense"]
    difference = result(run, "boundary")["after"]["moe-trained"]["difference"]
    assert difference["value"] == pytest.approx(loss["moe-trained"] - loss["dense-trained"])


def test_no_held_out_document_was_trained_on(run: PipelineResult) -> None:
    train, validation = (read_documents(run.out / "corpus" / f"{side}.jsonl") for side in ("train", "validation"))
    assert len(validation) > 10
    assert not {document.text for document in train} & {document.text for document in validation}


def test_both_models_were_trained_on_the_same_fresh_batches(run: PipelineResult) -> None:
    # Before their first step the two models are the same function: the same loss means the same batch.
    moe, dense = (rows(run.out / name, "step")[0]["ce"] for name in ("moe-trained", "dense-trained"))
    assert moe == pytest.approx(dense, abs=2e-2)
    for name in ("moe-trained", "dense-trained"):
        assert read_json(run.out / name / "run.json")["recipe"]["data"]["skip"] == 4 * DENSE
        assert result(run, name)["steps"] == MOE


def test_the_summary_says_what_people_ask(run: PipelineResult) -> None:
    columns, table = summary.table(run.out, run.stages)
    assert columns[2:6] == ["held-out loss", "code", "math", "prose"]
    cells = {row[0]: row for row in table}
    assert "verified (exact)" in cells["moe"][-2]
    assert "active" in cells["moe-trained"][-2]
    for name in ("dense", "moe-trained", "dense-trained"):
        assert all(map(float, cells[name][2:6]))
    text = run.text()
    for part in ("separation", "dense-trained, "):
        assert part in text, part


def test_the_terminal_ends_with_what_was_learned(run: PipelineResult, capsys: pytest.CaptureFixture[str]) -> None:
    show_quickstart(run, {})
    said = capsys.readouterr().out
    joined = " ".join(said.split())
    loss, base = (result(run, name)["held_out"]["loss"] for name in ("moe-trained", "dense-trained"))
    assert f"to {loss:.4f} (moe-trained) and {base:.4f} (dense-trained, the same tokens)" in joined
    difference = result(run, "boundary")["after"]["moe-trained"]["difference"]
    verdict = "better" if difference["high"] < 0 else "worse" if difference["low"] > 0 else "neither better nor worse"
    assert f"moe-trained is {verdict}" in joined
    assert (run.out / "page/index.html").resolve().as_uri() in said
    assert said.splitlines()[-2] == f"  {me()} recipes"


def test_the_trained_moe_is_a_stock_one(run: PipelineResult) -> None:
    config = read_json(run.out / "moe-trained" / "model" / "config.json")
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert "auto_map" not in config
    assert not config.get("output_router_logits")  # on only while it was trained


def test_the_report_shows_its_trainings_and_not_the_trial(run: PipelineResult) -> None:
    found = find([run.out])
    assert [training.label for training in found.trainings] == ["dense", "dense-trained", "moe-trained"]
    assert {path.name for path in run.out.iterdir()} == {*run.stages, "stages", "budget.json"} - {"doctor"}


def test_a_second_run_does_nothing_again(run: PipelineResult) -> None:
    before = hashes(run.out)
    again = go(run.out)
    assert not any(record["done"] for record in again.stages.values())
    assert hashes(run.out) == before


def test_other_settings_need_another_folder(run: PipelineResult) -> None:
    with pytest.raises(OutputError, match="seed: 0 there, 1 here"):
        go(run.out, seed=1)
    with pytest.raises(OutputError, match=r"minutes: 100\.0 there, 50\.0 here"):
        go(run.out, minutes=50)


def test_a_budget_shortens_all_trainings_alike(tmp_path: Path) -> None:
    found = go(tmp_path / "run", minutes=0.001)
    share = json.loads((tmp_path / "run" / "budget.json").read_text())["share"]
    assert share < 1
    steps = {name: max(1, round(share * most)) for name, most in (("dense", DENSE), ("moe-trained", MOE))}
    steps["dense-trained"] = steps["moe-trained"]
    assert {name: result(found, name)["steps"] for name in steps} == steps
    assert read_json(found.out / "moe-trained" / "run.json")["recipe"]["data"]["skip"] == 4 * steps["dense"]
    again = go(tmp_path / "run", minutes=0.001)
    assert not any(record["done"] for record in again.stages.values())
