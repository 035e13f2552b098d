"""The benchmarks' own tools: checkpoints that are what they say, measurements that see what a process does."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MB = 1_000_000


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("checkpoints")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("processes")


@pytest.mark.parametrize("tied", [True, False])
def test_random_checkpoints_load_whole(checkpoints: ModuleType, tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = replace(checkpoints.SMOLLM_135M, hidden=18, ffn=24, layers=2, vocabulary=400, tied=tied)
    checkpoints.write_random(tmp_path / "m", shape, 0)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_key_value_heads == 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert len(tokenizer) == 400
    assert tokenizer.decode(tokenizer("Hello, world")["input_ids"]) == "Hello, world"


def test_sparse_checkpoints_have_real_headers_and_take_no_disk(checkpoints: ModuleType, tmp_path: Path) -> None:
    from smolmoe.core.checkpoint import open_checkpoint

    total = checkpoints.write_sparse(tmp_path / "m", checkpoints.LLAMA_7B)
    assert total > 13_000 * MB
    assert sum(path.stat().st_blocks * 512 for path in (tmp_path / "m").iterdir()) < 10 * MB
    tensors = open_checkpoint(tmp_path / "m").tensors
    assert len(tensors) == 32 * 9 + 3
    assert tuple(tensors["model.layers.31.mlp.down_proj.weight"].shape) == (4096, 11008)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_process_is_measured_with_its_children(processes: ModuleType, tmp_path: Path) -> None:
    hold = "import time; held = b'x' * 60_000_000; time.sleep(0.5)"
    both = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {hold!r}]); {hold}; child.wait()"
    log = tmp_path / "log.txt"
    alone = processes.run([sys.executable, "-c", hold], log)
    family = processes.run([sys.executable, "-c", both], log)
    assert 60 * MB <= alone.anonymous < 110 * MB
    assert 120 * MB <= family.anonymous < 220 * MB
    assert alone.seconds >= 0.5
    assert alone.resident >= alone.anonymous


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_failed_process_is_reported_with_its_output(processes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exited with 3(?s:.*)no such luck"):
        processes.run([sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"], tmp_path / "log.txt")


def test_figures_go_between_their_markers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    machine = import_module("machine")
    monkeypatch.setattr(machine, "HERE", tmp_path)
    (tmp_path / "README.md").write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n")
    machine.record("x", {"machine": {"cores": 2}, "figure": 1}, "| new |")
    text = (tmp_path / "README.md").read_text()
    assert "| new |" in text
    assert "cores 2" in text
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")
    assert json.loads((tmp_path / "results" / "x.json").read_text())["figure"] == 1


def test_the_page_of_engines_is_made_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = spec_from_file_location("engines_benchmark", BENCHMARKS / "engines.py")  # `engines` are tests here
    assert spec is not None
    assert spec.loader is not None
    engines = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, engines)  # where dataclasses look for it
    spec.loader.exec_module(engines)
    results = json.loads(engines.RESULTS.read_text(encoding="utf-8"))
    page = engines.PAGE.read_text(encoding="utf-8")
    assert engines.page(results) in page, "run `python benchmarks/engines.py --page`"
    assert len({*results["rows"]}) == len(results["rows"])
    for cells in results["cells"].values():
        for cell in cells.values():
            assert (cell["verdict"] == "equal") <= (cell["difference"]["beyond"] == 0 if cell["difference"] else False)


def test_the_page_of_peers_has_the_figures_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    peers = import_module("peers")
    results = json.loads(peers.RESULTS.read_text(encoding="utf-8"))
    assert set(results["cells"]) == set(peers.ROWS)
    assert all(set(row) == set(peers.TOOLS) for row in results["cells"].values())
    text = peers.PAGE.read_text(encoding="utf-8")
    assert peers.page(results) == text.split("<!-- peers:begin -->\n")[1].split("\n<!-- peers:end -->")[0]
    figure = results["cells"]["copies"]["mergekit"]["result"]["perplexity"]
    assert f"{figure:.5g}" in text
