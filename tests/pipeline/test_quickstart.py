"""The quickstart from end to end, much reduced: what it writes holds together and is what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest

from smolmoe.data.text import read_documents
from smolmoe.demo import QuickstartResult, QuickstartSettings, quickstart
from smolmoe.errors import OutputError

SETTINGS = QuickstartSettings(
    megabytes=0.8,
    vocabulary=512,
    hidden=32,
    layers=2,
    intermediate=64,
    heads=2,
    kv_heads=1,
    length=64,
    dense_steps=30,
    moe_steps=6,
    held_out_tokens=600,
    new_tokens=8,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> QuickstartResult:
    return quickstart(tmp_path_factory.mktemp("quickstart") / "run", settings=SETTINGS)


def rows(run: QuickstartResult) -> list[dict]:
    return [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def test_everything_is_in_the_folder(run):
    for name in ("dense", "moe", "moe-trained", "dense-trained"):
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert (run.out / name / file).is_file(), (name, file)
    for name in ("corpus/train.jsonl", "corpus/validation.jsonl", "tokenizer/tokenizer.json", "boundary.png"):
        assert (run.out / name).is_file(), name
    assert json.loads((run.out / "report.json").read_text()) == json.loads(json.dumps(run.to_json()))
    assert not list(run.out.rglob("*.partial"))


def test_the_conversion_is_verified_and_leaves_the_loss_alone(run):
    assert run.verified
    assert abs(run.boundary.jump) < 1e-5
    assert run.report["stages"]["upcycle"]["target"] == "mixtral"
    assert run.boundary.moe.by_domain == pytest.approx(run.boundary.dense.by_domain, abs=1e-5)


def test_training_lowers_the_held_out_loss(run):
    assert run.boundary.dense.loss < math.log(512)
    assert run.boundary.moe_trained.loss < run.boundary.moe.loss
    assert run.boundary.dense_continued is not None
    assert run.boundary.dense_continued.loss < run.boundary.dense.loss
    assert run.boundary.difference is not None
    gap = run.boundary.moe_trained.loss - run.boundary.dense_continued.loss
    assert run.boundary.difference.value == pytest.approx(gap)


def test_no_held_out_document_was_trained_on(run):
    train, validation = (read_documents(run.out / "corpus" / f"{side}.jsonl") for side in ("train", "validation"))
    assert len(validation) > 10
    assert not {document.text for document in train} & {document.text for document in validation}


def test_both_models_went_on_with_the_same_batches(run):
    found = rows(run)
    first = {
        stage: next(row for row in found if row["stage"] == stage and row["kind"] == "train")
        for stage in ("moe-trained", "dense-trained")
    }
    # Before their first step the two models are the same function: the same loss means the same batch.
    assert first["moe-trained"]["loss"] == pytest.approx(first["dense-trained"]["loss"], abs=2e-2)
    assert {row["tokens"] for row in first.values()} == {64 * (SETTINGS.batch * 30 + SETTINGS.moe_batch)}


def test_the_metrics_are_the_whole_curve(run):
    found = rows(run)
    for stage, steps in (("dense", 30), ("moe-trained", 6), ("dense-trained", 6)):
        train = [row for row in found if row["stage"] == stage and row["kind"] == "train"]
        held_out = [row for row in found if row["stage"] == stage and row["kind"] == "held_out"]
        assert [row["step"] for row in train] == list(range(1, steps + 1))
        assert len(held_out) == 5 if stage == "moe-trained" else 4
        tokens = [row["tokens"] for row in held_out]
        assert tokens == sorted(tokens)
    boundary = [row for row in found if row["kind"] == "held_out" and row["tokens"] == 64 * SETTINGS.batch * 30]
    assert [(row["stage"], row["loss"]) for row in boundary] == [
        ("dense", run.boundary.dense.loss),
        ("moe-trained", run.boundary.moe.loss),
    ]


def test_the_report_says_what_people_ask(run):
    text = run.text()
    for part in (
        "verified",
        "active",
        "moe-trained",
        "dense-trained",
        "expert load",
        "--- code",
        "--- math",
    ):
        assert part in text, part
    stages = run.report["stages"]
    assert stages["dense"]["parameters"] < stages["moe-trained"]["parameters"]
    assert stages["samples"]["prose"]["dense"] == stages["samples"]["prose"]["moe"]
    assert len(stages["moe-trained"]["load"]["all"]) == 2
    assert stages["doctor"]["worst"] != "error"


def test_the_trained_moe_is_a_stock_one(run):
    config = json.loads((run.out / "moe-trained" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert "auto_map" not in config
    assert not config.get("output_router_logits")  # on only while it was trained


def test_a_second_run_does_nothing_again(run):
    before = hashes(run.out)
    again = quickstart(run.out, settings=SETTINGS)
    assert again.report == run.report
    changed = {path for path, value in hashes(run.out).items() if before[path] != value}
    assert {Path(path).name for path in changed} <= {"metrics.jsonl", "boundary.png", "report.json"}


def test_an_interrupted_run_goes_on_where_it_was(run, monkeypatch, tmp_path):
    import shutil

    from smolmoe.demo import run as module

    copy = tmp_path / "run"
    shutil.copytree(run.out, copy)
    for name in ("moe-trained", "dense-trained", "samples"):
        (copy / "stages" / f"{name}.json").unlink()
    monkeypatch.setattr(module._Quickstart, "train_dense", lambda self: pytest.fail("the dense model is finished"))
    again = quickstart(copy, settings=SETTINGS)
    assert again.boundary.dense == run.boundary.dense
    assert again.boundary.moe_trained.loss == pytest.approx(run.boundary.moe_trained.loss, abs=1e-4)


def test_other_settings_need_another_folder(run):
    with pytest.raises(OutputError, match="seed: 0 there, 1 here"):
        quickstart(run.out, settings=dataclasses.replace(SETTINGS, seed=1))
