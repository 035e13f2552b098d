"""data select and data score as a user calls them: what they print where, and what they refuse."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from helpers import tiny_tokenizer
from tests.cli.calls import Call
from tests.training.runs import write_text


@pytest.fixture
def data(smolmoe: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """`smolmoe data ...` in a folder with a text and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.jsonl")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return partial(smolmoe, "data")


def test_a_choice_is_described(data: Call, tmp_path: Path) -> None:
    code, out, err = data("select", "text.jsonl", "--out", "out", "--tokenizer", "tokenizer", "--by", "domain")
    assert code == 0, err
    assert "out/rows.jsonl: 60 of 60 rows" in out
    assert "940 rows fewer than the 1000 requested" in out
    assert "code" in out
    assert "prose" in out
    code, out, _ = data("select", "text.jsonl", "--out", "two", "--score", "random", "--budget", 7, "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 7
    assert len((tmp_path / "two/rows.jsonl").read_text().splitlines()) == 7
    code, _, err = data("select", "text.jsonl", "--out", "two", "--score", "random")
    assert (code, "--overwrite" in err) == (2, True)


def test_every_option_reaches_the_recipe(data: Call) -> None:
    code, out, err = data(
        *("select", "text.jsonl", "--out", "out", "--budget", 500, "--unit", "tokens", "--by", "domain"),
        *("--quota", "proportional", "--prefer", "low", "--tokenizer", "tokenizer", "--plain", "--seed", 3),
        *(
            "--text",
            "text",
            "--text-weight",
            1,
            "--prompt-weight",
            0.25,
            "--min-characters",
            9,
            "--max-characters",
            900,
        ),
        *("--min-prompt-characters", 2, "--near-duplicates", 0.9, "--held-out", 0.1, "--device", "cpu", "--json"),
    )
    assert code == 0, err
    recipe = json.loads(out)["recipe"]
    asked = {"budget": 500, "unit": "tokens", "by": ["domain"], "quota": "proportional", "prefer": "low", "plain": True}
    asked |= {"seed": 3, "text_weight": 1, "prompt_weight": 0.25, "min_characters": 9, "max_characters": 900}
    asked |= {"min_prompt_characters": 2, "near_duplicates": 0.9, "held_out": 0.1, "tokenizer": "tokenizer"}
    assert {name: recipe[name] for name in asked} == asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "perplexity"], "a perplexity is a model's"),
        ([], "tokens are a tokenizer's"),
        (["--score", "longest"], "score = longest"),
        (["--tokenizer", "tokenizer", "--by", "domian"], "Did you mean 'domain'"),
        (["--tokenizer", "tokenizer", "--min-characters", 9999], "text too short: 60"),
        (["--tokenizer", "tokenizer", "--budget", 0], "budget = 0"),
    ],
)
def test_what_is_refused(data: Call, arguments: list[object], said: str) -> None:
    code, out, err = data("select", "text.jsonl", "--out", "out", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_scores_are_explained(data: Call) -> None:
    code, out, err = data(
        "score", "the sum of the sum of the sum", "--tokenizer", "tokenizer", "--against", "text.jsonl"
    )
    assert code == 0, err
    assert "against text.jsonl" in out
    assert "bits, of" in out
    code, out, _ = data("score", "text.jsonl", "--tokenizer", "tokenizer", "--top", 2, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["rows"] == 60
    assert len(found["scores"]["entropy"]["highest"]) == 2
    code, out, _ = data("score", "text.jsonl", "--tokenizer", "tokenizer", "--top", 2)
    assert "entropy: lowest" in out
    code, _, err = data("score", "absent.jsonl", "--tokenizer", "tokenizer")
    assert (code, "no such file" in err) == (2, True)
    code, _, err = data("score", "some text")
    assert (code, "Name a tokenizer or a model" in err) == (2, True)
