"""The secretary and selective loading as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import random_moe, save
from tests.cli.calls import Call

from smolmoe.moe.names import set_expert_names

PROMPT = "The sum of three and four"


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_moe("mixtral", eos_token_id=None)
    set_expert_names(model.config, ["code", "web", "maths", None])
    return save(model, tmp_path_factory.mktemp("moe"))


def test_route_names_an_expert_with_its_confidence(smolmoe: Call, moe: Path) -> None:
    done = smolmoe("route", moe, PROMPT)
    first, *rows = done.out.splitlines()
    assert " confidence " in first
    assert {row.rsplit(maxsplit=1)[0].strip() for row in rows} == {"code", "web", "maths", "expert 3"}
    assert first.split(",")[0] == rows[0].rsplit(maxsplit=1)[0].strip()
    assert " read" in done.err


def test_route_has_every_layer_for_machines(smolmoe: Call, moe: Path) -> None:
    data = json.loads(smolmoe("route", moe, PROMPT, "--json").out)
    assert data["confidence"] == data["shares"][data["name"]] == max(data["shares"].values())
    assert [vote["layer"] for vote in data["layers"]] == [0, 1]
    assert sum(data["layers"][0]["shares"].values()) == pytest.approx(1)
    assert data["bytes"]["read"] < data["bytes"]["total"]


def test_generate_prints_the_text_alone_and_says_on_stderr_what_it_loaded(smolmoe: Call, moe: Path) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", 5, "--temperature", 0)
    done = smolmoe("generate", moe, *options, "--experts", "maths,3", "--offload-experts", "--expert-memory", 1)
    assert done.out.startswith(PROMPT)
    lines = {line.split()[0].rstrip(":"): line for line in done.err.splitlines()}
    assert "cpu" in lines["device"]
    assert list(lines) == ["device", "format", "sampling", "experts", "offloaded", "5"]
    first, second = lines["experts"], lines["offloaded"]
    assert first.startswith("experts: maths, expert 3;")
    assert " read and " in first
    assert " held of " in first
    assert second.startswith("offloaded: ")
    data = json.loads(smolmoe("generate", moe, *options, "--experts", "auto", "--json").out)
    assert data["experts"]["confidence"] > 0
    assert len(data["experts"]["indices"]) == 1
    assert data["texts"]


def test_bad_input_ends_with_2(smolmoe: Call, moe: Path) -> None:
    done = smolmoe("generate", moe, "--prompt", PROMPT, "--experts", "poetry")
    assert done.code == 2
    assert done.out == ""
    assert "code, web, maths and experts 0 to 3" in done.err
