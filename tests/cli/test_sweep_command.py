"""sweep as a user calls it: what it would cost, what it found, and numbers that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.calls import Call
from tests.training.runs import dense_folder, recipe

from smolmoe.results.scaling_law import read_sweep


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, dense_folder(tmp_path / "dense"))))
    return path


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(tiny: Path, smolmoe: Call) -> None:
    budgets = ("--tokens", "1.28K,2560,5e3", "--seeds", "2")
    code, out, _ = smolmoe("sweep", tiny, *budgets, "--dry-run")
    assert code == 0
    assert "1,280, 2,560, 4,992" in out
    assert "0 of 6 points" in out
    code, out, _ = smolmoe(
        "sweep", tiny, *budgets, "--dry-run", "--json", "--set", "trainer.lr_scheduler_type=constant"
    )
    found = json.loads(out)
    assert code == 0
    assert found["out"] == f"{tiny.parent / 'run'}-sweep"
    assert [cost["steps"] for cost in found["costs"]] == [2 * 39]
    assert found["flops"] < found["flops_unshared"]
    assert not Path(found["out"]).exists()


def test_two_budgets_are_trained_and_fit_no_law(tiny: Path, smolmoe: Call) -> None:
    code, out, _ = smolmoe("sweep", tiny, "--tokens", "256,512", "--out", tiny.parent / "out", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["kind"], found["schema_version"]) == ("sweep", 1)
    assert json.loads(json.dumps(read_sweep(tiny.parent / "out").to_json())) == found
    code, out, _ = smolmoe("sweep", tiny, "--tokens", "256,512", "--out", tiny.parent / "out")
    assert code == 0
    assert "no law: 2 budgets" in out
    assert "One seed:" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tokens", "1Q"), "error: tokens[0] = 1Q: must be a number of tokens"),
        (("--tokens", "1K,1K"), "twice"),
        (("--tokens", "1K", "--stage", "moe"), "one training, not a pipeline"),
    ],
)
def test_bad_requests(tiny: Path, smolmoe: Call, arguments: tuple[str, ...], said: str) -> None:
    code, _, err = smolmoe("sweep", tiny, *arguments)
    assert code == 2
    assert said in err
