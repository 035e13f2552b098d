"""The teacher's cache as a user asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.training.runs import dense_folder, write_text

from smolmoe.cli import app
from smolmoe.errors import RequestError


def smolmoe(*arguments: object) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    dense_folder(folder / "teacher")
    write_text(folder / "text.jsonl", documents=12)
    return folder


def test_a_dry_run_says_the_size_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    arguments = ("--teacher", place / "teacher", "--data", place / "text.jsonl", "--out", out, "--dry-run")
    smolmoe("distill", "cache", *arguments)
    printed = capsys.readouterr().out
    assert f"would write {out}" in printed
    assert "tokens in 12 documents" in printed
    assert "bytes per token" in printed
    smolmoe("distill", "cache", *arguments, "--json", "--sampled", 50)
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_per_token"] == pytest.approx(50 * (2 + 1) + 6, abs=1)
    assert not out.exists()


def test_a_cache_says_its_bytes_a_token_and_what_is_left_over(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--teacher", place / "teacher", "--data", place / "text.jsonl", "--device", "cpu")
    smolmoe("distill", "cache", *asked, "--out", tmp_path / "top")
    printed = capsys.readouterr().out
    assert "the 20 largest per token, temperature 1" in printed
    assert "% of the probability" in printed
    smolmoe("distill", "cache", *asked, "--out", tmp_path / "drawn", "--sampled", 30)
    assert "different tokens of 30 samples" in capsys.readouterr().out
    smolmoe("distill", "cache", *asked, "--out", tmp_path / "top", "--resume", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["size"], found["documents"]) == ("top_k", 20, 12)
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / found["tokens"], abs=0.01)


def test_two_kinds_at_once_are_refused(place: Path, tmp_path: Path) -> None:
    asked = ("--teacher", place / "teacher", "--data", place / "text.jsonl", "--out", tmp_path / "cache")
    with pytest.raises(RequestError, match="one kind"):
        smolmoe("distill", "cache", *asked, "--top-k", 5, "--sampled", 5)
