"""`benchmarks/gpu.py` on a CPU: its parts measure and check, its time is kept, its tables say what there is."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.benchmarks.test_tools import BENCHMARKS

FOREVER = 1e6


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu")


def measured(gpu: ModuleType, name: str, seconds: float = FOREVER) -> list[dict[str, Any]]:
    """The rows of a part on the CPU, with tiny models, in this process."""
    setting = gpu.Setting("cpu", True, time.monotonic() + seconds)
    rows = [json.loads(json.dumps(row)) for row in gpu.run_part(name, setting)]
    assert [row["error"] for row in rows if "error" in row] == []
    return rows


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_layer_is_compared_with_every_stock_implementation(gpu: ModuleType) -> None:
    rows = measured(gpu, "layer")
    assert {(row["numbers"], row["direction"]) for row in rows} == {
        ("bf16", "forward"),
        ("autocast", "both"),
        ("fp32", "both"),
    }
    for row in rows:
        assert set(row["seconds"]) == {"smolmoe", "eager", "grouped_mm", "batched_mm", "dense"}, row["errors"]
        assert row["fastest"] in ("eager", "grouped_mm", "batched_mm")
        stock = row["seconds"][row["fastest"]]["median"]
        assert row["ratio"] == pytest.approx(row["seconds"]["smolmoe"]["median"] / stock)
        assert all(entry["low"] <= entry["median"] <= entry["high"] for entry in row["seconds"].values())


def test_the_grid_of_a_gpu_has_every_shape_and_number_of_tokens(gpu: ModuleType) -> None:
    speed = import_module("gpu_speed")
    cases = speed.layer_cases(tiny=False)
    assert len(cases) == len({case.name for case in cases}) == (3 + 3 * 2) * 2 * len(speed.TOKENS)


@pytest.mark.slow
def test_steps_are_of_both_trainers(gpu: ModuleType) -> None:
    rows = measured(gpu, "step")
    assert [row["kind"] for row in rows] == [*import_module("step").KINDS]
    assert {row["kind"]: row["experts"] for row in rows}["smolmoe"] == "smolmoe"
    assert all(row["seconds"]["samples"] == 2 and row["tokens_per_second"] > 0 < row["peak_bytes"] for row in rows)


@pytest.mark.slow
def test_generation_is_timed(gpu: ModuleType) -> None:
    for row in measured(gpu, "decode"):
        assert (
            set(row["seconds"]) == set(row["first_token"]) == {"dense", "smolmoe", "eager", "grouped_mm", "batched_mm"}
        )
        assert row["tokens_per_second"]["dense"] == pytest.approx(row["batch"] / row["seconds"]["dense"]["median"])


def test_offloaded_experts_are_counted(gpu: ModuleType) -> None:
    whole, *cached = measured(gpu, "memory")
    assert (whole["moved_bytes"], whole["budget_bytes"]) == (0, None)
    for row in cached:
        assert 0 < row["budget_bytes"] <= row["experts_bytes"]
        assert row["misses"] * row["hits"] > 0


@pytest.mark.slow
def test_parity_passes_and_would_see_a_difference(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = measured(gpu, "parity")
    assert len(rows) == 2 * 3 * 4
    assert all(row["passed"] for row in rows), [row for row in rows if not row["passed"]]
    lowered = [row for row in rows if row["numbers"] == "bf16 autocast"]
    assert all(row["logits"] > 1e-4 for row in lowered)  # what fp32 would not pass with


def test_conversions_are_verified(gpu: ModuleType) -> None:
    rows = measured(gpu, "verify")
    assert {row["case"] for row in rows} == set(import_module("gpu_checks").REQUESTS)
    assert all(row["passed"] and not row["cpu"]["failed"] for row in rows), rows


def test_a_sharded_step_is_the_plain_one(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))  # to be restored
    exact, lowered = measured(gpu, "fsdp")
    assert exact["passed"]
    assert lowered["passed"]
    assert exact["losses"][0] != exact["losses"][2]  # something was learned
    assert exact["weights"] < lowered["weights"]


@pytest.mark.slow
def test_one_graph(gpu: ModuleType) -> None:
    rows = measured(gpu, "compile")
    assert len(rows) == 2 + 3
    assert all(row["passed"] and set(row["seconds"]) == {"eager", "compiled"} for row in rows), rows


def test_no_case_begins_after_the_end(gpu: ModuleType) -> None:
    setting = gpu.Setting("cpu", True, time.monotonic() - 1)
    assert [*gpu.run_part("layer", setting)] == []
    assert setting.left_out == 6


def test_a_failing_case_is_a_row(gpu: ModuleType) -> None:
    setting = gpu.Setting("cpu", True, time.monotonic() + FOREVER)
    rows = [*setting.each([1, 0, 2], lambda case: {"value": 1 / case})]
    assert [row.get("value") for row in rows] == [1, None, 0.5]
    assert rows[1]["error"] == "ZeroDivisionError: division by zero"


def test_a_failing_contender_is_left_out(gpu: ModuleType) -> None:
    setting = gpu.Setting("cpu", True, time.monotonic() + FOREVER)
    found = import_module("gpu_setting").take_turns(setting, {"good": lambda: 1, "bad": lambda: [][0]}, 0.0)
    assert set(found["seconds"]) == {"good"}
    assert found["errors"] == {"bad": "IndexError: list index out of range"}


# -- processes ---------------------------------------------------------------------------------------------------------


def good(name: str, setting: Any) -> Iterator[dict[str, Any]]:
    yield {"case": name, "device": setting.device, "tiny": setting.tiny}
    setting.left_out += 3


def crash(name: str, setting: Any) -> Iterator[dict[str, Any]]:
    yield {"case": "before"}
    print("the last words")
    sys.stdout.flush()
    os._exit(3)


def hang(name: str, setting: Any) -> Iterator[dict[str, Any]]:
    yield {"case": "before"}
    time.sleep(FOREVER)


def test_a_part_is_a_process(gpu: ModuleType) -> None:
    part = gpu.one("machine", FOREVER, "cpu", True, work=good)
    assert part["rows"] == [{"case": "machine", "device": "cpu", "tiny": True}]
    assert (part["status"], part["left_out"]) == ("done", 3)


def test_a_part_that_crashes_keeps_its_rows_and_last_lines(gpu: ModuleType) -> None:
    part = gpu.one("machine", FOREVER, "cpu", True, work=crash)
    assert (part["status"], part["rows"]) == ("failed", [{"case": "before"}])
    assert part["log"][-1] == "the last words"


def test_a_part_that_hangs_is_ended(gpu: ModuleType) -> None:
    for seconds in (2.0**power for power in range(10)):  # a slow machine needs more until the first row
        part = gpu.one("machine", seconds, "cpu", True, work=hang)
        assert part["status"] == "timed out"
        if part["rows"]:
            break
    assert part["rows"] == [{"case": "before"}]


def arguments(out: Path, **changes: Any) -> argparse.Namespace:
    values = {"out": out, "minutes": 5.0, "device": "cpu", "only": ["machine", "parity", "layer"], "tiny": True}
    return argparse.Namespace(**values | changes)


def test_time_is_shared_and_what_is_left_goes_to_later_parts(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, float] = {}
    now = [0.0]

    def spend(name: str, seconds: float, device: str, tiny: bool, method: str) -> dict[str, Any]:
        given[name] = seconds
        now[0] += seconds if name == "parity" else 0.0
        saved = json.loads((tmp_path / "gpu.json").read_text())["parts"] if len(given) > 1 else {}
        assert list(saved) == list(given)[:-1]  # the file has what is done so far
        return {"status": "done", "seconds": seconds, "left_out": 0, "rows": []}

    monkeypatch.setattr(gpu, "one", spend)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    gpu.measure(arguments(tmp_path / "gpu.json"))
    whole, shares = 300 - gpu.RESERVE, gpu.SHARES
    assert given["machine"] == gpu.STARTING  # more than its share, which it leaves to the others if it needs less
    assert given["parity"] == pytest.approx(whole * shares["parity"] / (shares["parity"] + shares["layer"]))
    assert given["layer"] == pytest.approx(whole - given["parity"])


def test_where_forked_processes_cannot_use_the_gpu_others_are_started(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: list[tuple[str, str]] = []

    def refuse(name: str, seconds: float, device: str, tiny: bool, method: str) -> dict[str, Any]:
        methods.append((name, method))
        return {"status": "failed" if method == "forkserver" else "done", "seconds": 1, "left_out": 0, "rows": []}

    monkeypatch.setattr(gpu, "one", refuse)
    found = gpu.measure(arguments(tmp_path / "gpu.json", only=["machine", "layer"]))
    assert methods == [("machine", "forkserver"), ("machine", "spawn"), ("layer", "spawn")]
    assert {part["status"] for part in found["parts"].values()} == {"done"}


def test_parts_of_the_same_code_and_machine_are_kept(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "one", lambda *_: {"status": "done", "seconds": 1, "left_out": 0, "rows": []})
    gpu.measure(arguments(out))
    assert set(gpu.measure(arguments(out, only=["step"]))["parts"]) == {"machine", "parity", "layer", "step"}
    assert set(gpu.measure(arguments(out, only=["step"], tiny=False))["parts"]) == {"machine", "step"}


def test_without_a_gpu_it_says_so(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.pick("auto")


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, {}),
        ("cuda", None, {"CUDA_VISIBLE_DEVICES": "0"}),
        ("cuda:1", None, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda:1", "4,6", {"CUDA_VISIBLE_DEVICES": "6"}),
    ],
)
def test_one_gpu_is_visible(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, expected: dict[str, str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.visible(device) == expected


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_is_committed(gpu: ModuleType) -> None:
    """Without results each row says so; with them the page is up to date."""
    tables = import_module("gpu_table").tables
    found = json.loads(gpu.RESULTS.read_text()) if gpu.RESULTS.is_file() else None
    page = gpu.PAGE.read_text(encoding="utf-8")
    for name, text in tables(found).items():
        assert f"<!-- gpu-{name}:begin -->\n{text}\n<!-- gpu-{name}:end -->" in page, name
        rows = [line for line in text.splitlines()[2:] if line.startswith("|")]
        assert found is not None or all("not measured yet" in row for row in rows)


def test_figures_come_into_the_tables(gpu: ModuleType) -> None:
    """Made of rows as the parts write them."""
    table = import_module("gpu_table")
    rates = {"median": 2.0, "low": 1.0, "high": 3.0, "samples": 5}
    checked = {"numbers": "fp32", "logits": 2e-6, "gradients": 3e-6, "flips": 0.0, "passed": True}
    layer = {"case": "D576/E8/K2/I1536/bf16/forward/T64", "ratio": 0.5, "fastest": "batched_mm", "chosen": "grouped_mm"}
    step = {"kind": "smolmoe", "seconds": rates, "tokens_per_second": 1234.5, "peak_bytes": 7e9}
    parts: dict[str, list[dict[str, Any]]] = {
        "machine": [{"gpu": "a GPU", "driver": "1.2"}],
        "parity": [checked, {**checked, "logits": 4e-5, "passed": False}, {"case": "x", "error": "OutOfMemoryError"}],
        "layer": [layer],
        "step": [step],
        "decode": [{"batch": 1, "tokens_per_second": {"dense": 100.0, "smolmoe": 90.0}}],
        "memory": [
            {
                "case": "the default cache",
                "peak_bytes": 3e9,
                "tokens_per_second": 12.5,
                "moved_bytes": 4e9,
                "generating": 2.0,
            }
        ],
        "compile": [
            {
                "case": "layer, bf16, T512",
                "seconds": {"eager": rates, "compiled": rates},
                "compiling": 9.0,
                "difference": 1e-3,
                "passed": True,
            }
        ],
        "tests": [{"tests": 90, "failures": 1, "errors": 0, "skipped": 2}],
    }
    status = {"status": "done", "seconds": 1.0, "left_out": 0}
    found = {"machine": {"torch": "2"}, "seconds": 500.0, "parts": {n: {**status, "rows": r} for n, r in parts.items()}}
    text = table.tables(found)
    assert "1 of 2 passed; logits 4.0e-05" in text["checks"]
    assert "90 tests, 1 failed, 2 skipped" in text["checks"]
    assert "gpu a GPU" in text["machine"]
    assert "- parity: done; 0 cases left out for lack of time; x: OutOfMemoryError" in text["machine"]
    assert "0.50 b" in text["layer"]
    assert "fastest stock implementation in 0 of 1 cases" in text["layer"]
    assert "| smolmoe | 1,234 | 1000.0 to 3000.0 ms | 7.00 GB |" in text["step"]
    assert "| 1 | 100 | 90 |" in text["decode"]
    assert "| the default cache | 3.00 GB | 12.5 | 2.00 GB/s |" in text["memory"]
    assert "2000.00 ms | 2000.00 ms | 9.0 s" in text["compile"]


def test_tiny_figures_are_not_shown(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"tiny": True}))
    with pytest.raises(SystemExit, match="--tiny"):
        gpu.write_tables(tmp_path / "gpu.json")


def test_a_report_of_pytest_is_read(gpu: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase classname="a" name="b">'
        '<failure message="it broke&#10;here"/></testcase></testsuite></testsuites>'
    )
    counts, failed = import_module("gpu_checks").read_report(tmp_path / "report.xml")
    assert counts == {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}
    assert failed == ["a::b it broke"]
