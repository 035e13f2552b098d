"""train, run and recipes as a user calls them: what they print where, what they refuse, and how they exit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import tiny_tokenizer
from tests.cli.calls import Call
from tests.training.runs import write_text

from smolmoe.cli.calling import as_typed

HEAVY = """
import sys
from smolmoe.cli import main
sys.argv = ["smolmoe", *sys.argv[1:]]
try:
    main()
finally:
    print("heavy:", *sorted({"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
"""
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe in the current folder, with its text and tokenizer."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.jsonl")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    values = {
        "model": {"config": {"model_type": "llama", **SMALL}},
        "tokenizer": "tokenizer",
        "data": {"sources": [{"path": "text.jsonl"}], "length": 32, "held_out": 0.2, "cache": "cache"},
        "trainer": {"max_steps": 4, "per_device_train_batch_size": 4, "report_to": "none"},
        "evaluation": {"tokens": 200},
        "samples": {"prompts": ["the sum"], "new_tokens": 4},
        "device": "cpu",
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    return Path("mine.yaml")


def test_training_says_what_came_out(smolmoe: Call, recipe: Path) -> None:
    done = smolmoe("train", recipe)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "runs/mine: 36.8 K parameters, 4 steps"
    assert lines[1].startswith("  tokens         512 in ")
    assert lines[2].startswith("  device         cpu (")
    assert re.match(r"  held-out loss  \d\.\d{4} -> \d\.\d{4} nats per token on", lines[3])
    assert lines[4].startswith("  change         better: -")
    assert lines[6].startswith("  best           runs/mine/best (step 4, held-out loss ")
    assert "\n--- the sum" in done.out
    assert lines[-5] == "What to type next"
    assert lines[-4::2] == [
        "  smolmoe generate runs/mine/model --prompt 'Once upon a time'",
        "  smolmoe report runs/mine --out runs/mine/report.html",
    ]
    for stage in ("Reading the model", "Tokenising", "Training", "Writing the model"):
        assert f"{stage} ..." in done.err
        assert stage not in done.out
    again = smolmoe("train", recipe)
    assert again.code == 2
    assert "--resume latest" in again.err
    longer = smolmoe("train", recipe, "--resume", "latest", "--set", "trainer.max_steps=6")
    assert longer.code == 0, longer.err
    assert "6 steps" in longer.out


def test_a_dry_run_says_the_cost_and_writes_nothing(smolmoe: Call, recipe: Path) -> None:
    there = sorted(os.listdir())
    done = smolmoe("train", recipe, "--dry-run")
    assert done.code == 0, done.err
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [
        *("parameters", "steps", "tokens", "FLOPs", "memory", "time")
    ]
    data = json.loads(smolmoe("train", recipe, "--dry-run", "--json").out)
    assert data["tokens"] == 4 * 4 * 32
    assert data["size"]["total"] == 36768
    open_ended = smolmoe("train", recipe, "--dry-run", "--set", "trainer.max_steps=-1")
    assert "known after the text is read" in open_ended.out
    assert sorted(os.listdir()) == there


def test_json_is_all_that_stdout_has(recipe: Path) -> None:
    """In a process of its own, where every library may chatter."""
    command = [sys.executable, "-c", "from smolmoe.cli import main; main()", "train", str(recipe), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["out"] == "runs/mine"
    assert data["held_out"]["documents"] > 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "none.yaml"], ["error: recipe = none.yaml: no such file."]),
        (["train", "tinystorys-moe"], ["error: recipe = tinystorys-moe", "  fix: Did you mean 'tinystories-moe'?"]),
        (["train", "mine.yaml", "--set", "data.lenght=3"], ["error: data.lenght = 3", "Did you mean 'length'?"]),
        (["train", "mine.yaml", "--set", "trainer.max_step=3"], ["trainer.max_step", "Did you mean 'max_steps'?"]),
        (["train", "mine.yaml", "--set", "data.length=abc"], ["error: data.length = abc", "tokens per block"]),
        (["train", "mine.yaml", "--set", "length"], ["must be section.key=value"]),
        (["train", "mine.yaml", "--device", "abacus"], ["error: device = abacus", "Use "]),
        (["train", "mine.yaml", "--resume", "latest"], ["no complete checkpoint", "without --resume"]),
        (["train", "embedded"], ["is a pipeline", "`smolmoe run embedded`"]),
        (["run", "mine.yaml"], ["is one training", "`smolmoe train mine.yaml`"]),
        (["run", "embedded", "--set", "stages.moe.upcycle.top=2"], ["stages.moe.upcycle.top =", "'top_k'"]),
        (["run", "embedded", "--set", "out=run", "--from", "nowhere"], ["error: from = nowhere", "Stages: dense, moe"]),
        (["recipes", "copy", "embeded"], ["Did you mean 'embedded'?"]),
    ],
)
def test_bad_input(smolmoe: Call, recipe: Path, arguments: list[str], said: list[str]) -> None:
    done = smolmoe(*arguments)
    assert done.code == 2
    assert done.out == ""
    for part in said:
        assert as_typed(part) in done.err
    assert not Path("runs/mine/summary.json").exists()


def test_an_error_as_json(smolmoe: Call, recipe: Path) -> None:
    done = smolmoe("train", recipe, "--set", "data.lenght=3", "--json")
    assert done.code == 2
    assert json.loads(done.out)["fix"] == "Did you mean 'length'?"


def test_a_training_that_cannot_go_on_fails(smolmoe: Call, recipe: Path) -> None:
    changes = ("--set", "trainer.learning_rate=1e30", "--set", "trainer.warmup_steps=0")
    done = smolmoe("train", recipe, *changes)
    assert done.code == 1
    assert "the step was not taken" in done.err
    assert done.out == ""


def test_a_pipeline_in_its_table(smolmoe: Call, recipe: Path) -> None:
    own = yaml.safe_load(recipe.read_text())
    onward = {key: own[key] for key in ("data", "trainer", "evaluation", "device")}
    stages = [
        {"name": "dense", "train": {"model": own["model"], "tokenizer": "tokenizer"}},
        {"name": "moe", "upcycle": {"source": "{dense}", "experts": 4, "verify": "none"}},
        {"name": "moe-trained", "train": {"model": {"path": "{moe}"}}},
        {"name": "growth", "report": {"before": "dense", "after": {"MoE": "moe-trained"}}},
    ]
    Path("line.yaml").write_text(yaml.safe_dump({"defaults": onward, "stages": stages}))
    plan = smolmoe("run", "line.yaml", "--dry-run")
    assert plan.code == 0, plan.err
    assert "would write runs/line" in plan.out
    assert any(line.split()[:3] == ["moe-trained", "train", "moe"] for line in plan.out.splitlines())
    assert "of training on this machine" in plan.out
    assert not Path("runs").exists()
    planned = json.loads(smolmoe("run", "line.yaml", "--dry-run", "--json").out)
    assert [stage["name"] for stage in planned["stages"]] == ["dense", "moe", "moe-trained", "growth"]
    done = smolmoe("run", "line.yaml")
    assert done.code == 0, done.err
    assert "held-out loss (nats per token)" in done.out
    assert "1/4 dense: Training ..." in done.err
    again = smolmoe("run", "line.yaml", "--json")
    data = json.loads(again.out)
    assert not any(record["done"] for record in data["stages"].values())
    changed = smolmoe("run", "line.yaml", "--set", "stages.moe.upcycle.experts=8")
    assert changed.code == 2
    assert "experts: 4 there, 8 here" in changed.err
    assert "--from moe" in changed.err


def test_recipes(smolmoe: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = smolmoe("recipes")
    assert listed.code == 0
    assert "tinystories-moe-1b" in listed.out
    found = json.loads(smolmoe("recipes", "--json").out)
    assert {each["name"]: each["kind"] for each in found}["embedded"] == "pipeline"
    copied = smolmoe("recipes", "copy", "embedded")
    assert copied.out == "embedded.yaml\n"
    assert smolmoe("recipes", "copy", "embedded").code == 2
    assert smolmoe("recipes", "copy", "embedded", "--out", "other.yaml").code == 0
    assert Path("other.yaml").read_text() == Path("embedded.yaml").read_text()


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["run", "--help"], ["recipes", "copy", "--help"], ["recipes"]]
)
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "heavy:"
