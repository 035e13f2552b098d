"""Every command is a public function with the same options, and its help is written for a reader."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.cli.calls import Call
from typer.core import TyperGroup

import smolmoe
from smolmoe.cli import app
from smolmoe.errors import RequestError
from smolmoe.verbs.signature import fields_of

SOURCE = Path(smolmoe.__file__).parent
# Whole commands that a reader is to type, and programs of others.
TYPED = re.compile(r"smolmoe [a-z]|python -m |pip download|hf download|--outfile|--outtype")


def commands(group: Any, name: str = "smolmoe") -> Iterator[tuple[str, Any]]:
    for own, command in group.commands.items():
        yield f"{name} {own}", command
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{name} {own}")


ALL = dict(commands(typer.main.get_command(app)))
LEAVES = {name: command for name, command in ALL.items() if getattr(command.callback, "verb", None) is not None}


def test_every_command_is_made_of_a_function() -> None:
    groups = {"smolmoe align", "smolmoe data", "smolmoe distill"}
    assert set(ALL) - set(LEAVES) == groups


@pytest.mark.parametrize("name", LEAVES)
def test_there_is_a_public_function_with_the_same_options(name: str) -> None:
    command = LEAVES[name]
    verb = command.callback.verb
    assert getattr(smolmoe, verb.__name__) is verb
    assert verb.__name__ in smolmoe.__all__
    # the others are about the terminal
    options = {parameter.name for parameter in command.params} - {"as_json", "quiet", "help", "stream"}
    assert options <= set(fields_of(verb)), "an option that the function does not take"
    if "set" not in options:  # of a recipe file, what is not an option is set by --set
        assert options == set(fields_of(verb)), "a parameter that the command does not have"


@pytest.mark.parametrize("name", ALL)
def test_helps_are_short_and_say_something(name: str) -> None:
    command = ALL[name]
    summary = (command.help or "").partition("\n")[0]
    assert summary.endswith(".")
    assert summary.count(". ") == 0
    assert 10 < len(summary) <= 62, summary
    for parameter in command.params:
        text = getattr(parameter, "help", None) or ""
        if parameter.name != "help":
            assert re.match(r"[\w\"].*\.(  \[.+\])?$", text), (parameter.name, text)


def test_plain_english() -> None:
    wrong = re.compile(r"\b(drawn|told|beside|anew|goes on with|of what)\b", re.IGNORECASE)
    for name, command in ALL.items():
        for text in (command.help or "", *((getattr(one, "help", "") or "") for one in command.params)):
            assert not wrong.search(text), (name, text)


def test_only_the_command_line_spells_options() -> None:
    found = []
    for path in SOURCE.rglob("*.py"):
        if "cli" in path.relative_to(SOURCE).parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]  # a command may have values in it
        parts = {id(part) for node in whole for part in node.values}
        for node in [*whole, *(node for node in ast.walk(tree) if isinstance(node, ast.Constant))]:
            if id(node) in parts or not isinstance(text := ast.unparse(node) if node in whole else node.value, str):
                continue
            if not TYPED.search(text):
                words = re.findall(r"(?<![\w-])(?<!var\()--[a-z][a-z-]+", text)  # not variables of style sheets
                found += [(path.name, node.lineno, word) for word in words]
    allowed = {  # ours that print JSON, and those of other programs
        "--build",
        "--json",
        "--local-dir",
        "--no-binary",
        "--no-deps",
        "--no-ppl",
        "--model",
        "--model-path",
        "--prompt",
        "--target",
        "--to",
        "--trust-remote-code",
        "--llama-cpp",
    }
    assert [each for each in found if each[2] not in allowed] == []


def test_an_error_is_spelled_for_its_reader(smolmoe: Call, tmp_path: Path) -> None:
    from tests import zoo

    from smolmoe import upcycle

    with pytest.raises(RequestError) as caught:
        upcycle(zoo.folder("llama"), tmp_path / "moe", router_data=tmp_path / "rows.jsonl")
    assert "router='domains'" in str(caught.value.fix)
    done = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "moe", "--router-data", tmp_path / "rows.jsonl")
    assert done.code == 2
    assert "--router domains" in done.err
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    done = smolmoe("upcycle", zoo.folder("llama"), tmp_path / "there")
    assert "overwrite=True" not in done.err


def test_version(smolmoe: Call) -> None:
    import smolmoe as package

    assert smolmoe("--version").out == f"smolmoe {package.__version__}\n"
