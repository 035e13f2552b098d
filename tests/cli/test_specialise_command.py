"""specialise and init on the command line: what they print before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import dense_llama, save
from tests.cli.calls import Call
from tests.training.runs import write_text

from smolmoe.training.rate import Rate


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("smolmoe.training.rate.measure_rate", lambda *args, **options: Rate(1000.0, 1e9))
    monkeypatch.setenv("SMOLMOE_CACHE", str(tmp_path / "cache"))
    model = save(dense_llama(), tmp_path / "dense")
    text = write_text(tmp_path / "text.jsonl", documents=90, domains=("code", "math", "prose"))
    return [str(model), "--data", str(text), "--minutes", "0.5"]


def test_a_dry_run_is_two_tables(asked: list[str], tmp_path: Path, smolmoe: Call) -> None:
    done = smolmoe("specialise", *asked, "-o", tmp_path / "run", "--dry-run")
    assert done.code == 0, done.err
    for part in ("sequence length", "not longer", "would write", "experts", "nothing is written"):
        assert part in done.out, part
    assert not (tmp_path / "run").exists()
    found = json.loads(smolmoe("specialise", *asked, "-o", tmp_path / "run", "--dry-run", "--json").out)
    assert {stage["stage"] for stage in found["forecast"]["stages"]} > {"routers", "experts", "dense"}
    assert all(stage["disk"] >= 0 for stage in found["forecast"]["stages"])


@pytest.mark.slow
def test_a_run_ends_with_the_losses_and_what_to_type_next(asked: list[str], tmp_path: Path, smolmoe: Call) -> None:
    done = smolmoe("specialise", *asked, "-o", tmp_path / "run")
    assert done.code == 0, done.err
    for part in ("routing: ", "MoE vs dense", "smolmoe generate", "smolmoe extract", "smolmoe push", "index.html"):
        assert part in done.out, part
    refused = smolmoe("specialise", *asked, "--seed", "3", "-o", tmp_path / "run")
    assert refused.code == 2
    assert "seed" in refused.err
    assert "--overwrite" in refused.err


def test_init_names_the_command(asked: list[str], tmp_path: Path, smolmoe: Call) -> None:
    done = smolmoe("init", *asked, "-o", tmp_path / "mine.yaml")
    assert done.code == 0, done.err
    assert f"`smolmoe run {tmp_path / 'mine.yaml'}`" in done.out
