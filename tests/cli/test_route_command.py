"""The secretary and selective loading as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import random_moe, save

from smolmoe.cli import app
from smolmoe.moe.names import set_expert_names

PROMPT = "The sum of three and four"


def smolmoe(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_moe("mixtral", eos_token_id=None)
    set_expert_names(model.config, ["code", "web", "maths", None])
    return save(model, tmp_path_factory.mktemp("moe"))


def test_route_names_an_expert_with_its_confidence(moe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smolmoe("route", moe, PROMPT)
    printed = capsys.readouterr()
    first, *rows = printed.out.splitlines()
    assert " confidence " in first
    assert {row.rsplit(maxsplit=1)[0].strip() for row in rows} == {"code", "web", "maths", "expert 3"}
    assert first.split(",")[0] == rows[0].rsplit(maxsplit=1)[0].strip()
    assert " read" in printed.err


def test_route_has_every_layer_for_machines(moe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smolmoe("route", moe, PROMPT, "--json")
    data = json.loads(capsys.readouterr().out)
    assert data["confidence"] == data["shares"][data["name"]] == max(data["shares"].values())
    assert [vote["layer"] for vote in data["layers"]] == [0, 1]
    assert sum(data["layers"][0]["shares"].values()) == pytest.approx(1)
    assert data["bytes"]["read"] < data["bytes"]["total"]


def test_generate_prints_the_text_alone_and_says_on_stderr_what_it_loaded(
    moe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", 5, "--temperature", 0)
    smolmoe("generate", moe, *options, "--experts", "maths,3", "--offload-experts", "--expert-memory", 1)
    printed = capsys.readouterr()
    assert printed.out.startswith(PROMPT)
    first, second = printed.err.splitlines()
    assert first.startswith("experts: maths, expert 3;")
    assert " read and " in first
    assert " held of " in first
    assert second.startswith("offloaded: ")
    smolmoe("generate", moe, *options, "--experts", "auto", "--json")
    data = json.loads(capsys.readouterr().out)
    assert data["experts"]["confidence"] > 0
    assert len(data["experts"]["indices"]) == 1
    assert data["texts"]


def test_bad_input_ends_with_2(moe: Path) -> None:
    command = [sys.executable, "-c", "from smolmoe.cli import main; main()"]
    options = ["generate", str(moe), "--prompt", PROMPT, "--experts", "poetry"]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "code, web, maths and experts 0 to 3" in run.stderr
