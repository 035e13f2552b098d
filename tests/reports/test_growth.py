"""The growth report: its numbers, from run folders made by hand; its table; its picture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from smolmoe.errors import RequestError
from smolmoe.reports.growth import growth, growth_text, read_run, write_report

DENSE = {0: 6.0, 50: 4.5, 100: 4.0}
MOE = {0: 4.001, 1: 4.1, 10: 4.05, 30: 3.9, 100: 3.7}
ONWARD = {0: 4.0, 1: 3.99, 10: 3.98, 100: 3.8}
FINAL_NLL = {"MoE": [36.0, 38.0], "on": [37.0, 39.0]}


def run_folder(path: Path, losses: Mapping[int, float], nll: list[float], **documents: Any) -> Path:
    """What a finished run of 10 tokens a step leaves."""
    path.mkdir()
    other = [{"kind": "step", "step": 1, "loss": 9.9}, {"kind": "window", "step": 1, "ce": 9.9}]
    rows = [*other, *({"kind": "held_out", "step": step, "loss": loss} for step, loss in losses.items())]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = max(losses)
    (path / "summary.json").write_text(json.dumps({"tokens": 10 * steps, "steps": steps, "flops": 1e6 * steps}))
    about = {"nll": nll, "tokens": [10] * len(nll), "domains": ["a"] * len(nll), **documents}
    (path / "held_out.json").write_text(json.dumps(about))
    return path


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, float, float]:
    value = (sum(a["nll"]) - sum(b["nll"])) / sum(a["tokens"])
    return value, value - 0.01, value + 0.01


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "dense": run_folder(tmp_path / "dense", DENSE, [40.0, 40.0]),
        "MoE": run_folder(tmp_path / "moe", MOE, FINAL_NLL["MoE"]),
        "on": run_folder(tmp_path / "on", ONWARD, FINAL_NLL["on"]),
    }


def report_of(folders: Mapping[str, Path], reference: str | None = "on", **options: Any) -> dict[str, Any]:
    before, *after = (read_run(label, folder) for label, folder in folders.items())
    return growth(before, after, reference, difference, **options)


def test_the_numbers(folders: dict[str, Path]) -> None:
    report = report_of(folders)
    row = report["after"]["MoE"]
    assert row["jump"] == pytest.approx(0.001)
    assert row["spike"] == pytest.approx(0.099)  # 4.1 at step 1
    assert row["drop"] == pytest.approx(0.301)
    assert row["total_drop"] == pytest.approx(2.3)
    assert row["final"] == 3.7
    assert (row["tokens"], row["flops"]) == (1000, 1e8)
    assert row["difference"] == {
        "value": pytest.approx(-0.1),
        "low": pytest.approx(-0.11),
        "high": pytest.approx(-0.09),
    }
    assert report["after"]["on"]["spike"] == 0.0
    assert "difference" not in report["after"]["on"]
    assert report["before"] == {"label": "dense", "first": 6.0, "loss": 4.0, "tokens": 1000}
    assert (report["documents"], report["held_out_tokens"]) == (2, 20)


def test_a_later_boundary(folders: dict[str, Path]) -> None:
    """Spike and drop count from there, the jump from the conversion."""
    folders["on"].rename(folders["on"].with_name("gone"))
    report = report_of({"dense": folders["dense"], "MoE": folders["MoE"]}, reference=None, boundary=10)
    row = report["after"]["MoE"]
    assert row["spike"] == 0.0
    assert row["drop"] == pytest.approx(0.35)
    assert row["jump"] == pytest.approx(0.001)
    lines = growth_text(report).splitlines()
    assert lines[0].split()[-4:] == ["token)", "step", "10", "final"]
    assert "jump" not in lines[4]


def test_without_a_run_before(folders: dict[str, Path]) -> None:
    runs = [read_run(label, folders[label]) for label in ("MoE", "on")]
    report = growth(None, runs, None, difference)
    assert report["before"] is None
    assert report["after"]["MoE"]["jump"] is None
    text = growth_text(report)
    assert "jump" not in text
    assert "before" not in text


def test_other_tokens_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    other = run_folder(tmp_path / "other", ONWARD, [1.0, 1.0], tokens=[10, 11])
    with pytest.raises(RequestError, match="other held-out text than dense") as caught:
        report_of({**folders, "other": other})
    assert caught.value.value == "other"
    domains = run_folder(tmp_path / "domains", ONWARD, [1.0, 1.0], domains=["a", "b"])
    with pytest.raises(RequestError, match="other held-out text"):
        report_of({**folders, "domains": domains})


def test_unfinished_or_unmeasured_runs_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match=r"Add 7 to its evaluation\.at"):
        report_of(folders, boundary=7)
    (folders["on"] / "summary.json").unlink()
    with pytest.raises(RequestError, match="not finished"):
        report_of(folders)


def test_the_text_is_aligned_and_says_who_is_better(folders: dict[str, Path]) -> None:
    lines = growth_text(report_of(folders)).splitlines()
    assert re.split(" {2,}", lines[0])[1:] == ["before", *(f"step {n}" for n in (0, 1, 10, 30, 100)), "final"]
    assert lines[2].split() == ["MoE", "4.0000", "4.0010", "4.1000", "4.0500", "3.9000", "3.7000", "3.7000"]
    assert lines[3].split() == ["on", "4.0000", "4.0000", "3.9900", "3.9800", "3.8000", "3.8000"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert len({len(line) for line in lines[5:9]}) == 1
    assert lines[7].split() == ["MoE", "+1.0e-03", "+0.0990", "+0.3010", "+2.3000", "1,000", "100", "MFLOPs"]
    assert lines[-1] == (
        "MoE: compared with on, too few documents for a finding (at least 6): -0.1000 nats per token, 95% interval "
        "[-0.1100, -0.0900] over 2 documents (one seed)."
    )


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (0.2, "worse than on, +0.2000 nats per token, 95% interval [+0.1900, +0.2100] over 12 documents"),
        (0.005, "compared with on, no difference seen: +0.0050"),
        (-0.1, "better than on, -0.1000"),
    ],
)
def test_verdicts(folders: dict[str, Path], gap: float, said: str) -> None:
    before, *after = (read_run(label, folder) for label, folder in folders.items())
    report = growth(before, after, "on", lambda a, b: (gap, gap - 0.01, gap + 0.01)) | {"documents": 12}
    assert said in growth_text(report)


def test_what_is_written(tmp_path: Path, folders: dict[str, Path]) -> None:
    after = {label: folders[label] for label in ("MoE", "on")}
    out = tmp_path / "report"
    found = write_report(out, folders["dense"], after, reference="on", boundary=0, compare=difference)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(found))
    assert (out / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "growth.png").stat().st_size > 20_000
