"""A command that is shown can be typed in the user's shell as it stands."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from smolmoe.cli import calling
from smolmoe.cli.output import print_error
from smolmoe.errors import RequestError


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What is called is found out once per process."""
    calling.me.cache_clear()
    yield
    calling.me.cache_clear()


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in the current folder, and its `smolmoe` as the running program."""
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    for name in ("smolmoe", "python"):
        (scripts / name).write_text("#!/bin/sh\n")
        (scripts / name).chmod(0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(scripts))
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setattr(sys, "argv", [str(scripts / "smolmoe"), "quickstart"])
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    return scripts


def test_on_the_path_it_is_called_by_its_name(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/usr/bin{os.pathsep}{scripts}")
    assert calling.me() == "smolmoe"


def test_a_link_on_the_path_is_the_same_program(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "smolmoe").symlink_to(scripts / "smolmoe")
    monkeypatch.setenv("PATH", str(links))
    assert calling.me() == "smolmoe"


def test_a_link_that_was_called_is_called_again(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "linked").symlink_to(scripts / "smolmoe")
    monkeypatch.setattr(sys, "argv", ["./linked", "quickstart"])
    assert calling.me() == "./linked"


def test_another_one_on_the_path_is_not_this_one(
    scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "smolmoe").write_text("#!/bin/sh\n")
    (other / "smolmoe").chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    assert calling.me() == ".venv/bin/smolmoe"


def test_below_the_current_folder_its_path_is_relative(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert calling.me() == ".venv/bin/smolmoe"
    calling.me.cache_clear()
    monkeypatch.chdir(scripts)
    assert calling.me() == "./smolmoe"


def test_elsewhere_its_path_is_whole_and_quoted(scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert calling.me() == str(scripts / "smolmoe")
    spaced = scripts.rename(tmp_path / "my bin")
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(spaced))
    calling.me.cache_clear()
    assert calling.me() == f"'{spaced / 'smolmoe'}'"


def test_a_module_is_called_as_one(scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/smolmoe/__main__.py", "quickstart"])
    assert calling.me() == ".venv/bin/python -m smolmoe"
    calling.me.cache_clear()
    monkeypatch.setenv("PATH", str(scripts))
    assert calling.me() == "python -m smolmoe"


def test_without_a_script_it_is_called_as_a_module(scripts: Path) -> None:
    (scripts / "smolmoe").unlink()
    assert calling.me() == ".venv/bin/python -m smolmoe"


def test_commands_in_an_error_can_be_typed(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fix = "`smolmoe verify` measures again; smolmoe itself is the `smolmoe` package."
    print_error(RequestError("is wrong.", field="out", value="x", fix=fix), as_json=False)
    said = capsys.readouterr().err
    assert "fix: `.venv/bin/smolmoe verify` measures again; smolmoe itself is the `smolmoe` package." in said
