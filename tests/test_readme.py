"""The README is short, opens with the two commands, and names only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

import smolmoe
from smolmoe.cli import app
from smolmoe.recipe import UpcycleRecipe, parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short_and_opens_with_the_two_commands() -> None:
    assert len(README.splitlines()) <= 200
    opening = README[: README.index("\n## ")]
    assert re.findall(r"^make (\w+)", opening, re.MULTILINE) == ["demo", "test"]
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:.*##", targets, re.MULTILINE)
    assert re.search(r"^test:.*##", targets, re.MULTILINE)


def test_every_command_and_option_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    code = "\n".join(re.findall(r"^```.*?^```", README, re.DOTALL | re.MULTILINE))
    named = set(re.findall(r"^(?:\$ )?smolmoe ([a-z]+)", code, re.MULTILINE))
    assert {"inspect", "upcycle", "verify", "doctor", "generate", "quickstart"} <= named <= set(commands)
    options = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= options


def test_the_python_block_names_what_there_is() -> None:
    call = re.search(r"smolmoe\.upcycle\((.*)\)", README)
    assert call is not None
    options = dict(re.findall(r"(\w+)=(\d+)", call[1]))
    parse(UpcycleRecipe, {"source": "a", "out": "b", **{key: int(value) for key, value in options.items()}})
    for name in re.findall(r"smolmoe\.(\w+)\(", README):
        assert name in smolmoe.__all__


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
