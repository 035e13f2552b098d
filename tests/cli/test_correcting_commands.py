"""align pairs and align score as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from smolmoe.cli import make_pairs, score_corrections
from smolmoe.errors import RequestError


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    make_pairs.COMMAND.add_to(app, "pairs")
    score_corrections.COMMAND.add_to(app, "score")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def printed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.fixture(scope="module")
def asked(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    lines = (shared / "data" / "gec_jfleg_coedit_schema.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return [shared / "models" / "stories260K", "--data", path, "--max-new-tokens", 16]


def test_score_says_in_words_that_copying_is_better(asked: list[object], tmp_path: Path) -> None:
    text = printed("score", *asked, "--rows", 9, "--out", tmp_path / "out")
    assert "8 texts corrected (asked for 9; the data has no more)" in text
    assert "copying the input" in text
    assert "a person (8 texts)" in text
    assert "! The model does not beat copying the input: it is worse by BLEU" in text
    assert "the worst by SARI" in text
    assert text.count("  reference  ") == 6
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 8


def test_score_as_json(asked: list[object]) -> None:
    values = json.loads(printed("score", *asked, "--rows", 4, "--prompt-template", "{prompt}\\nGood: ", "--json"))
    assert values["model"]["rows"] == 4
    assert values["copy"]["unchanged"] == 1
    assert {"bleu", "gleu", "sari", "exact_match"} == set(values["difference"])
    assert set(values["not_better"]) >= {"bleu", "gleu"}


def test_pairs_and_their_report(asked: list[object], tmp_path: Path) -> None:
    text = printed("pairs", *asked, "--out", tmp_path / "out", "--prompts", 6, "--temperatures", "1.2,0.6")
    assert "pairs of 6 prompts: " in text
    assert "preferred  temperature 1.2: " in text
    values = json.loads(printed("pairs", *asked, "--out", tmp_path / "all", "--json"))
    assert values["prompts"] == 8
    again = json.loads(printed("pairs", *asked, "--out", tmp_path / "all", "--resume", "--json"))
    assert again == values
    assert json.loads((tmp_path / "all" / "report.json").read_text()) == values


@pytest.mark.parametrize("temperatures", ["1.0", "a,b", "1,2,3"])
def test_temperatures_are_two_numbers(asked: list[object], tmp_path: Path, temperatures: str) -> None:
    result = run("pairs", *asked, "--out", tmp_path / "out", "--temperatures", temperatures)
    assert isinstance(result.exception, RequestError)
    assert "two numbers" in result.exception.message
