"""compare as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.helpers import dense_llama, random_moe, save
from tests.training.runs import write_text
from typer.testing import CliRunner, Result

from smolmoe.cli import compare
from smolmoe.errors import RequestError


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    compare.COMMAND.add_to(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(dense_llama(), folder / "base")
    for seed in (0, 1):
        save(random_moe("mixtral", seed=seed), folder / f"moe{seed}")
    write_text(folder / "text.jsonl", 8)
    return folder


def test_the_table_and_the_files(folder: Path, tmp_path: Path) -> None:
    models = [f"base={folder / 'base'}", f"moe [x]={folder / 'moe0'},{folder / 'moe1'}"]
    options = ["--data", folder / "text.jsonl", "--by", "domain", "--no-speed", "--out", tmp_path / "out"]
    result = run(*models, *options)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0].startswith(("moe [x] beats base", "moe [x] loses to base", "moe [x] and base: no difference seen"))
    assert any(line.split()[:3] == ["base", "moe", "[x]"] for line in lines)  # no part of a name is taken for markup
    assert any("over 2 seeds" in line for line in lines)
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    loss = written["models"][1]["by_domain"]["prose"]["value"]
    row = next(line for line in lines if line.strip().startswith("prose"))
    assert f"{loss:.4f} ±" in row
    assert str(tmp_path / "out") in lines[-1]
    assert (tmp_path / "out" / "table.md").is_file()


def test_json(folder: Path) -> None:
    models = [f"base={folder / 'base'}", f"moe={folder / 'moe0'}"]
    result = run(*models, "--data", folder / "text.jsonl", "--no-speed", "--json")
    assert result.exit_code == 0, result.exception
    values = json.loads(result.stdout)
    assert values["kind"] == "compare"
    assert [one["name"] for one in values["models"]] == ["base", "moe"]
    assert values["models"][0]["speed"] is None


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["runs/base", "moe=runs/moe"], "must be NAME=PATH"),
        (["=runs/base", "moe=runs/moe"], "must be NAME=PATH"),
        (["base=", "moe=runs/moe"], "must be NAME=PATH"),
        (["base=a", "base=b"], "is given twice"),
        (["base=a", "moe=b,"], "must be NAME=PATH"),
    ],
)
def test_arguments_that_make_no_sense(folder: Path, models: list[str], message: str) -> None:
    result = run(*models, "--data", folder / "text.jsonl")
    assert isinstance(result.exception, RequestError)
    assert message in str(result.exception)
