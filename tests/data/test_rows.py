from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import tiny_tokenizer
from tests.training.runs import write_text

from smolmoe.data.corpus import load_corpus
from smolmoe.data.rows import write_rows
from smolmoe.recipe.data import DataRecipe


def texts(path: Path) -> list[tuple[str, str]]:
    return [(row["text"], row["domain"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


@pytest.mark.parametrize("own", [False, True])
def test_rows_are_on_the_side_that_training_has_them_on(tmp_path: Path, own: bool) -> None:
    write_text(tmp_path / "train.jsonl", documents=60)
    write_text(tmp_path / "validation.jsonl", documents=70, seed=1)
    again = (tmp_path / "train.jsonl").read_text().splitlines()[0]
    with (tmp_path / "train.jsonl").open("a") as file:  # one is there twice, and one is to be held out
        file.write(again + "\n")
        file.write((tmp_path / "validation.jsonl").read_text().splitlines()[5] + "\n")
    values = {"sources": [{"path": str(tmp_path / "train.jsonl")}], "cache": str(tmp_path / "cache"), "held_out": 0.3}
    if own:
        values["validation"] = [{"path": str(tmp_path / "validation.jsonl")}]
    recipe = DataRecipe.model_validate(values)
    tokenizer = tiny_tokenizer()
    corpus = load_corpus(recipe, tokenizer)
    paths = write_rows(recipe, tmp_path / "rows", characters=10**6)
    for path, store in zip(paths, (corpus.validation, corpus.train), strict=True):
        of_corpus = [
            (tokenizer.decode(store.document(i)).removesuffix("<end>"), corpus.domains[store.domain_ids[i]])
            for i in range(len(store))
        ]
        assert sorted(texts(path)) == sorted(of_corpus)
    held, rest = (set(texts(path)) for path in paths)
    assert held
    assert not held & rest


def test_so_many_characters_of_each_domain(tmp_path: Path) -> None:
    write_text(tmp_path / "train.jsonl", documents=60, domains=("code", "prose", "prose"))
    recipe = DataRecipe.model_validate({"sources": [{"path": str(tmp_path / "train.jsonl")}], "held_out": 0.3})
    _, training = write_rows(recipe, tmp_path / "rows", characters=500)
    spent: Counter[str] = Counter()
    for text, domain in texts(training):
        spent[domain] += len(text)
    assert set(spent) == {"code", "prose"}
    assert all(500 <= count < 1000 for count in spent.values())
