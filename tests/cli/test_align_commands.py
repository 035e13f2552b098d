"""align sft, dpo and cpo as a user calls them, on real corrections and preferences."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.alignment.runs import METHODS
from tests.cli.calls import Call


@pytest.fixture
def align(smolmoe: Call) -> Call:
    return partial(smolmoe, "align")


@pytest.fixture(scope="module")
def moe(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K with four experts a layer."""
    from smolmoe.surgery.run import upcycle

    out = tmp_path_factory.mktemp("moe") / "moe"
    upcycle(shared / "models" / "stories260K", out, experts=4, top_k=2, target="mixtral", verify="none")
    return out


@pytest.fixture
def recipe(tmp_path: Path, moe: Path, shared: Path) -> Callable[[str], Path]:
    def write(method: str) -> Path:
        data = shared / "data"
        file = "gec_coedit_rows.jsonl" if method == "sft" else "gec_pref_coedit.jsonl"
        values = {
            "model": {"path": str(moe)},
            "data": {
                "train": [str(data / file)],
                "corrections": str(data / "gec_jfleg_coedit_schema.jsonl"),
                "length": 120,
            },
            "answers": 1,
            "trainer": {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "logging_steps": 1},
            "device": "cpu",
            "out": str(tmp_path / "run"),
        }
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.mark.parametrize("method", METHODS)
def test_real_rows_end_to_end(align: Call, recipe: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    path = recipe(method)
    planned = align(method, path, "--dry-run")
    assert planned.code == 0, planned.err
    assert "trained" in planned.out
    assert "left out" in planned.out  # too long
    done = align(method, path)
    assert done.code == 0, done.err
    assert "routers (balanced)" in done.out
    assert "input copied" in done.out
    assert ("chosen answer more likely" in done.out) == (method != "sft")
    assert "Warning" not in done.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    scores = summary["corrections"]
    assert scores["before"]["copy"]["metrics"]["sari"] == scores["after"]["copy"]["metrics"]["sari"]
    assert scores["after"]["model"]["rows"] == 1
    again = align(method, path, "--json")
    assert (again.code, json.loads(again.out)["field"]) == (2, "out")
    assert "--overwrite" in again.err


def test_a_recipe_of_another_method(align: Call, recipe: Callable[[str], Path]) -> None:
    done = align("dpo", recipe("sft"), "--set", "method=sft")
    assert done.code == 2
    assert "smolmoe align sft" in done.err
    done = align("dpo", recipe("dpo"), "--set", "beeta=1", "--json")
    assert json.loads(done.out)["fix"] == "Did you mean 'beta'?"
