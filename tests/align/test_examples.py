"""Rows of every schema as examples and as tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer

from smolmoe.align.examples import Example, read_examples
from smolmoe.align.tokens import fingerprint, tokenised
from smolmoe.errors import DataError, RequestError
from smolmoe.recipe import parse
from smolmoe.recipe.align import AlignDataRecipe

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def read(folder: Path, rows: list[dict[str, Any]], *, pairs: bool = False, **changes: Any) -> list[Example]:
    file, other = folder / "rows.jsonl", folder / "other.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other.write_text(json.dumps({"prompt": "?", "completion": "!", "chosen": "!", "rejected": "."}) + "\n")
    if changes.pop("chat", False):
        (folder / "chat.jinja").write_text(CHAT)
        changes["chat_template"] = str(folder / "chat.jinja")
    values = {"train": [str(file)], "validation": [str(other)], **changes}
    return read_examples(parse(AlignDataRecipe, values), tiny_tokenizer(), pairs=pairs).train


def test_corrections(tmp_path: Path) -> None:
    row = {"_id": "1", "task": "gec", "src": "Fix: He go.", "tgt": "He goes.", "refs": ["He goes.", "He went."]}
    (found,) = read(tmp_path, [row])
    assert found == Example("Fix: He go.\n", "He goes.", None, "Fix: He go.", ("He goes.", "He went."), "gec")
    (found,) = read(tmp_path, [row], template="Q: {prompt} A: ")
    assert found.prompt == "Q: Fix: He go. A: "


def test_plain_rows_and_named_columns(tmp_path: Path) -> None:
    (found,) = read(tmp_path, [{"prompt": "a", "completion": "b"}])
    assert (found.prompt, found.chosen, found.references) == ("a\n", "b", ())
    (tmp_path / "same.jsonl").write_text(json.dumps({"q": "z", "a": "y"}) + "\n")
    columns = {"prompt": "q", "completion": "a"}
    (found,) = read(tmp_path, [{"q": "a", "a": "b"}], columns=columns, validation=[str(tmp_path / "same.jsonl")])
    assert (found.prompt, found.chosen) == ("a\n", "b")
    # The better answer of a pair is an answer.
    (found,) = read(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert (found.chosen, found.rejected) == ("b", None)
    (found,) = read(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], pairs=True)
    assert (found.chosen, found.rejected) == ("b", "c")


def test_every_turn_of_a_chat_is_an_example(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    first, second = read(tmp_path, [{"messages": messages}], chat=True)
    assert (first.prompt, first.chosen) == ("<user>a</><assistant>", "b</>")
    assert (second.prompt, second.chosen) == ("<user>a</><assistant>b</><user>c</><assistant>", "d</>")


def test_a_ranking_of_sharegpt(tmp_path: Path, shared: Path) -> None:
    lines = (shared / "data" / "pref_chat_dpo_en_demo.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = read(tmp_path, rows, pairs=True, chat=True)
    assert len(found) == len(rows) == 233
    assert found[0].prompt == f"<user>{rows[0]['conversations'][0]['value']}</><assistant>"
    assert found[0].chosen == rows[0]["chosen"]["value"] + "</>"
    assert found[0].rejected == rows[0]["rejected"]["value"] + "</>"


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"src": f"{number % 50}", "tgt": f"{number}"} for number in range(200)]  # every prompt four times
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_examples(
        parse(AlignDataRecipe, {"train": [str(file)], "held_out": 0.3}), tiny_tokenizer(), pairs=False
    )
    train, held_out = ({example.prompt for example in side} for side in (found.train, found.validation))
    assert not train & held_out
    assert len(train) + len(held_out) == 50
    both = parse(AlignDataRecipe, {"train": [str(file)], "validation": [str(file)]})
    with pytest.raises(DataError, match="none is left for training"):
        read_examples(both, tiny_tokenizer(), pairs=False)


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"text": "a"}, {}, "of no format that is known"),
        ({"prompt": "a", "completon": "b"}, {}, "Did you mean 'completon'"),
        ({"prompt": "a", "chosen": "b"}, {"pairs": True}, 'no "rejected"'),
        ({"prompt": "a", "completion": 3}, {}, "the answer is a int"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, {"pairs": True}, "rejected is a NoneType"),
        ({"messages": [{"who": "a"}]}, {"chat": True}, "no role and content"),
        ({"conversations": []}, {"chat": True}, "where messages should be"),
        ({"src": "a"}, {}, 'no "tgt"'),
    ],
)
def test_rows_that_are_not_what_they_should_be(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [row], **options)
    assert said in str(caught.value)
    assert "rows.jsonl" in str(caught.value)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(RequestError, match="no template for one"):
        read(tmp_path, [row])
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path, [row], chat_template="nowhere.jinja")
    (tmp_path / "bad.jinja").write_text("{% for %}")
    with pytest.raises(RequestError, match="does not render"):
        read(tmp_path, [row], chat_template=str(tmp_path / "bad.jinja"))


def test_answers_follow_the_tokens_of_their_prompt() -> None:
    tokenizer = tiny_tokenizer()
    (row,), dropped = tokenised([Example("the su", "m of", "seven", "the su")], tokenizer, 64)
    assert list(row.prompt) == tokenizer("the su")["input_ids"]
    assert tokenizer.decode(row.prompt + row.chosen) == "the sum of<end>"  # no token over the boundary
    assert row.chosen[-1] == row.rejected[-1] == tokenizer.eos_token_id
    assert row.tokens == 2 * len(row.prompt) + len(row.chosen) + len(row.rejected)
    assert dropped.to_json() == {"equal": 0, "too_long": 0, "empty": 0}


def test_what_cannot_be_learned_from_is_left_out() -> None:
    examples = [
        Example("a", "b", "c", "a"),
        Example("a", "b", "b", "a"),
        Example("a", "b " * 40, "c", "a"),
        Example("a", "c", "b " * 40, "a"),
        Example("a", " ", "c", "a"),
        Example("", "b", "c", ""),
    ]
    rows, dropped = tokenised(examples, tiny_tokenizer(), 16)
    assert len(rows) == 1
    assert dropped.to_json() == {"equal": 1, "too_long": 2, "empty": 2}
    assert fingerprint(rows) != fingerprint([*rows, *rows])
