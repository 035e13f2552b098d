"""What a text holds, before anything is chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_tokenizer

from smolmoe.data.embedded import is_held_out
from smolmoe.data.survey import Survey, survey
from smolmoe.errors import DataError
from smolmoe.recipe.data import DataRecipe


def write(path: Path, **domains: int) -> Path:
    rows = [
        {"text": f"{name} {n} " + "word " * n, "domain": name} for name, count in domains.items() for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(*paths: Path, validation: Path | None = None) -> Survey:
    sides = {"sources": [{"path": str(path)} for path in paths]}
    sides |= {"validation": [{"path": str(validation)}]} if validation else {}
    return survey(DataRecipe.model_validate(sides), tiny_tokenizer())


def test_documents_and_tokens_are_counted_by_domain(tmp_path: Path) -> None:
    found = look(write(tmp_path / "a.jsonl", code=150, chat=60))
    tokens = {
        name: sum(len(tiny_tokenizer()(f"{name} {n} " + "word " * n)["input_ids"]) + 1 for n in range(count))
        for name, count in (("code", 150), ("chat", 60))
    }
    assert found.names == ("chat", "code")
    assert {name: one.documents for name, one in found.domains.items()} == {"chat": 60, "code": 150}
    assert {name: one.tokens for name, one in found.domains.items()} == tokens
    lengths = sorted(length for one in found.domains.values() for length in one.lengths)
    assert found.shorter(lengths[104]) >= 0.5 > found.shorter(lengths[103] - 1)
    assert found.length(1.0) == lengths[-1]


def test_the_share_holds_out_ten_documents_of_each_domain(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", code=400, chat=120)
    found = look(path)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]

    def fewest(share: float) -> int:
        held = [is_held_out(text, share) for text in texts]
        return min(sum(held[:400]), sum(held[400:]))

    assert fewest(found.share) >= 10 > fewest(found.share / 2)
    assert found.tokens == int((1 - found.share) * sum(one.tokens for one in found.domains.values()))


def test_repeated_texts_and_those_held_out_count_once(tmp_path: Path) -> None:
    train, own = write(tmp_path / "a.jsonl", code=60), write(tmp_path / "b.jsonl", code=30)
    found = look(train, train, validation=own)
    assert found.repeated == 30 + 60
    assert found.domains["code"].documents == 30
    assert found.own_held_out


def test_too_few_documents_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the domain 'chat' has 7 different documents; at least 20") as caught:
        look(write(tmp_path / "a.jsonl", code=60, chat=7))
    assert "merge it with another domain" in str(caught.value.fix)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="there is no text"):
        look(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="the domain 'new' has 0 different documents"):
        look(write(tmp_path / "c.jsonl", code=60), validation=write(tmp_path / "d.jsonl", code=5, new=5))
