"""The commands as a user calls them: what goes to stdout, what to stderr, and how they exit."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from tests import zoo
from tests.cli.calls import Call
from tests.processes import Child

from smolmoe.surgery import ffn

SMOLMOE = "from smolmoe.cli import main; main()"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MoE made by the command, with what the command printed beside it."""
    out = tmp_path_factory.mktemp("cli") / "moe"
    with Child(SMOLMOE, "upcycle", zoo.folder("llama"), out, "--experts", 4) as run:
        assert run.wait() == 0, run.stderr
        (out.parent / "stdout").write_text(run.stdout)
        (out.parent / "stderr").write_text(run.stderr)
    return out


def test_upcycle_prints_the_result_and_says_what_it_does_on_stderr(moe: Path) -> None:
    printed = (moe.parent / "stdout").read_text()
    assert "MixtralForCausalLM, 4 experts of width 48, top-2" in printed
    assert "The claim (exact) holds" in printed
    assert "random experts" in printed
    assert re.search(r"Writing  (\S+ kB) of \1  in ", (moe.parent / "stderr").read_text())
    provenance = json.loads((moe / "smolmoe.json").read_text())
    assert provenance["verification"]["passed"] is True
    assert provenance["request"]["experts"] == 4
    assert len(provenance["sources"]["base"]["sha256"]) == 64


def test_inspect(smolmoe: Call) -> None:
    run = smolmoe("inspect", zoo.folder("qwen2_window"))
    assert run.code == 0
    assert "8 in 2 of 3 layers" in run.out
    assert "not glm4_moe, granitemoe, granitemoeshared: it has no sliding window." in run.out
    data = json.loads(smolmoe("inspect", zoo.folder("qwen2_window"), "--json").out)
    assert {t["target"]: t["shared"] for t in data["targets"]}["qwen2_moe"] is True


def test_dry_run_writes_nothing_and_says_what_it_costs(smolmoe: Call, tmp_path: Path) -> None:
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--dry-run", "--diversify", "drop", "--json")
    assert run.code == 0, run.err
    assert os.listdir(tmp_path) == []
    plan = json.loads(run.out)
    assert plan["dry_run"] is True
    assert plan["estimate"]["disk_bytes"] == plan["bytes"] > 0
    assert plan["estimate"]["memory_bytes"] > 0
    assert all(0.2 < error < 1.5 for error in plan["claim"]["predicted_ffn_error"])


def test_verify_passes_and_fails_by_its_exit_code(smolmoe: Call, moe: Path, tmp_path: Path) -> None:
    assert smolmoe("verify", zoo.folder("llama"), moe).code == 0
    other = smolmoe("verify", zoo.folder("llama", seed=1), moe)
    assert other.code == 1
    assert "FAILED logits" in other.out
    assert "does NOT hold" in other.out


def test_doctor_tells_errors_from_information(smolmoe: Call, moe: Path, tmp_path: Path) -> None:
    fine = smolmoe("doctor", moe)
    assert fine.code == 0
    assert "info: The experts are bit-identical copies" in fine.out
    options = ("--experts", 4, "--router", "zero", "--verify", "none")
    smolmoe("upcycle", zoo.folder("llama"), tmp_path / "zero", *options)
    ill = smolmoe("doctor", tmp_path / "zero", "--json")
    assert ill.code == 1
    assert json.loads(ill.out)["findings"][0]["severity"] == "error"


def test_generate(smolmoe: Call, moe: Path) -> None:
    options = ("--prompt", "def", "--max-new-tokens", 5, "--num", 2, "--seed", 3)
    one, two = smolmoe("generate", moe, *options), smolmoe("generate", moe, *options)
    assert one.code == 0, one.err
    assert one.out == two.out
    assert one.out.startswith("def")


def test_bad_input_is_a_short_message_and_exit_code_2(smolmoe: Call, tmp_path: Path) -> None:
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--top-k", 9)
    assert run.code == 2
    assert run.out == ""
    assert run.err.splitlines()[-2:] == [
        "error: top_k = 9: more experts per token than there are experts (8).",
        "  fix: Use at most 8.",
    ]
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--granularity", 5, "--top-k", 5, "--json")
    assert run.code == 2
    assert json.loads(run.out)["error"] == "RequestError"
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--expert", "code")
    assert "NAME=PATH" in run.err
    assert os.listdir(tmp_path) == []


def test_a_claim_that_does_not_hold_fails_the_command(
    smolmoe: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that errs is caught by the files themselves."""
    real = ffn.scales
    monkeypatch.setattr(ffn, "scales", lambda *a, **k: ffn.Scales(real(*a, **k).routed * 1.01, 1.0, 0.0))
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe")
    assert run.code == 1
    assert "logits: measured" in run.err
    assert json.loads((tmp_path / "moe" / "smolmoe.json").read_text())["verification"]["passed"] is False
