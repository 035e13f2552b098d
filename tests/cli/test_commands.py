"""The commands as a user calls them: what goes to stdout, what to stderr, and how they exit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest
from tests import zoo

from smolmoe.cli import main

SMOLMOE = [sys.executable, "-c", "from smolmoe.cli import main; main()"]


def smolmoe(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command does, in this process: starting another one takes longer than most of them."""
    out, err = StringIO(), StringIO()
    code: int | str | None = 0
    handler = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(sys, "argv", ["smolmoe", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    assert isinstance(code, int)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MoE made by the command, with what the command printed beside it."""
    out = tmp_path_factory.mktemp("cli") / "moe"
    command = [*SMOLMOE, "upcycle", str(zoo.folder("llama")), str(out), "--experts", "4"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (out.parent / "stdout").write_text(run.stdout)
    (out.parent / "stderr").write_text(run.stderr)
    return out


def test_upcycle_prints_the_result_and_says_what_it_does_on_stderr(moe: Path) -> None:
    printed = (moe.parent / "stdout").read_text()
    assert "MixtralForCausalLM, 4 experts of width 48, top-2" in printed
    assert "The claim (exact) holds" in printed
    assert "random experts" in printed
    assert "Written" in (moe.parent / "stderr").read_text()
    provenance = json.loads((moe / "smolmoe.json").read_text())
    assert provenance["verification"]["passed"] is True
    assert provenance["request"]["experts"] == 4
    assert len(provenance["sources"]["base"]["sha256"]) == 64


def test_inspect() -> None:
    run = smolmoe("inspect", zoo.folder("qwen2_window"))
    assert run.returncode == 0
    assert "8 in 2 of 3 layers" in run.stdout
    assert "granitemoeshared: it has no sliding window. Nearest: generic." in run.stdout
    data = json.loads(smolmoe("inspect", zoo.folder("qwen2_window"), "--json").stdout)
    assert {t["target"]: t["shared"] for t in data["targets"]}["qwen2_moe"] is True


def test_dry_run_writes_nothing_and_says_what_it_costs(tmp_path: Path) -> None:
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--dry-run", "--diversify", "drop", "--json")
    assert run.returncode == 0, run.stderr
    assert os.listdir(tmp_path) == []
    plan = json.loads(run.stdout)
    assert plan["dry_run"] is True
    assert plan["estimate"]["disk_bytes"] == plan["bytes"] > 0
    assert plan["estimate"]["memory_bytes"] > 0
    assert all(0.2 < error < 1.5 for error in plan["claim"]["predicted_ffn_error"])


def test_verify_passes_and_fails_by_its_exit_code(moe: Path, tmp_path: Path) -> None:
    assert smolmoe("verify", zoo.folder("llama"), moe).returncode == 0
    other = smolmoe("verify", zoo.folder("llama", seed=1), moe)
    assert other.returncode == 1
    assert "FAILED logits" in other.stdout
    assert "does NOT hold" in other.stdout


def test_doctor_tells_errors_from_information(moe: Path, tmp_path: Path) -> None:
    fine = smolmoe("doctor", moe)
    assert fine.returncode == 0
    assert "info: The experts are bit-identical copies" in fine.stdout
    options = ("--experts", 4, "--router", "zero", "--no-verify")
    smolmoe("upcycle", zoo.folder("llama"), tmp_path / "zero", *options)
    ill = smolmoe("doctor", tmp_path / "zero", "--json")
    assert ill.returncode == 1
    assert json.loads(ill.stdout)["findings"][0]["severity"] == "error"


def test_generate(moe: Path) -> None:
    options = ("--prompt", "def", "--max-new-tokens", 5, "--num", 2, "--seed", 3)
    one, two = smolmoe("generate", moe, *options), smolmoe("generate", moe, *options)
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert one.stdout.startswith("def")


def test_bad_input_is_a_short_message_and_exit_code_2(tmp_path: Path) -> None:
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--top-k", 9)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines()[-2:] == [
        "error: top_k = 9: more experts per token than the 8 there are.",
        "  fix: Use at most 8.",
    ]
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--granularity", 5, "--top-k", 5, "--json")
    assert run.returncode == 2
    assert json.loads(run.stdout)["error"] == "RequestError"
    run = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--expert", "code")
    assert "NAME=PATH" in run.stderr
    assert os.listdir(tmp_path) == []


def test_a_claim_that_does_not_hold_fails_the_command(tmp_path: Path) -> None:
    """A writer that errs is caught by the files themselves."""
    broken = (
        "from smolmoe.surgery import ffn; real = ffn.scales\n"
        "ffn.scales = lambda *a: ffn.Scales(real(*a).routed * 1.01, 1.0, real(*a).shared)\n"
    )
    command = [sys.executable, "-c", broken + "from smolmoe.cli import main; main()"]
    out = tmp_path / "moe"
    run = subprocess.run(
        [*command, "upcycle", str(zoo.folder("llama")), str(out)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "logits: measured" in run.stderr
    assert json.loads((out / "smolmoe.json").read_text())["verification"]["passed"] is False
