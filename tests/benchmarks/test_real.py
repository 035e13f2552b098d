"""The benchmark of a real model: its tables are those of the page, and its figures name no folder of a machine."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("real_table")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("real_runs")


def test_the_page_has_the_tables_of_the_results(real: Any) -> None:
    page = (real.DOCS / "reference" / "results.md").read_text(encoding="utf-8")
    shown = page.split("<!-- real:begin -->\n")[1].split("\n<!-- real:end -->")[0]
    assert real.page() == shown, "run `python benchmarks/real.py table`"
    assert "**Exactness.**" in shown


def test_figures_name_no_folder_of_a_machine(runs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "FIGURES", tmp_path)
    inside = [Path("/home/me/b/moe"), "/home/me/c", "a/b"]
    runs.record("x", {"model": "/home/me/dense", "inside": inside, "command": "smolmoe train /home/me/x"})
    assert "/home" not in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert runs.read("x")["model"] == "dense"
    assert runs.read("x")["inside"] == ["moe", "c", "a/b"]
    assert runs.read("y") is None
    for file in (BENCHMARKS / "results" / "real").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert '"/' not in text, file.name
        assert "~/" not in text, file.name


def test_the_text_is_split_by_domain_once(runs: Any, tmp_path: Path) -> None:
    rows = [{"text": "a", "domain": "web"}, {"text": "b", "domain": "code"}, {"text": "c", "domain": "web"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = runs.domain_files(argparse.Namespace(text=tmp_path, out=tmp_path / "out"))
    assert list(files) == ["code", "web"]
    assert [json.loads(line)["text"] for line in files["web"].read_text(encoding="utf-8").splitlines()] == ["a", "c"]


def test_shares_have_wilsons_interval(real: Any) -> None:
    assert real.share_of(9, 10) == "90.0% [59.6%, 98.2%]"
    assert real.share_of(10, 10) == "100.0% [72.2%, 100.0%]"


def test_failed_checks_and_refusals_are_shown(real: Any) -> None:
    logits = {"max_abs": 1.0, "max_logit": 10.0, "delta_loss": 0.25, "top1": 0.5}
    made = {
        "target": "mixtral",
        "claim": {"kind": "exact"},
        "parameters": {"moe": {"total": 2_000_000}},
        "logits": logits,
        "checks": [{"name": "logits", "passed": False}, {"name": "loss", "passed": True}],
    }
    lines = real.exact({"requests": {"copies": made, "odd": {"refused": "it cannot be split."}}})
    assert "| copies | mixtral | exact | 2 M | 1.0e-01 of the largest | +0.2500 | 50.0% | **no**: logits |" in lines
    assert any(line.startswith("| odd | refused: it cannot be split.") for line in lines)
