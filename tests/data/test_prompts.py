"""Rows of corrections: what is the instruction, what is the text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_tokenizer

from smolmoe.data.prompts import CorrectionPrompt, prompt_ids, read_corrections, strip_instructions
from smolmoe.errors import DataError, RequestError, SourceError

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_instruction_of_a_coedit_row_is_no_part_of_its_text(tmp_path: Path) -> None:
    rows = [
        {"task": "gec", "src": "Fix grammar: He said: go.", "tgt": "He said: go!"},
        {"task": "unknown", "src": "Note: he go.", "tgt": "Note: he goes."},
        {"task": "gec", "src": "He go.", "tgt": "He goes."},
    ]
    found = read_corrections(write(tmp_path / "rows.jsonl", *rows))
    assert [row.source for row in found] == ["He said: go.", "Note: he go.", "He go."]
    assert [row.instructed for row in found] == [row["src"] for row in rows]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["Fix: a b", "Fix: c d"], ["a b", "c d"]),  # all begin alike
        (["Fix: a", "Mend: b", "Fix: c", "Mend: d"], ["a", "b", "c", "d"]),
        (["Fix: a", "Mend: b"], ["Fix: a", "Mend: b"]),  # each its own: may be text
        (["Fix: a", "Fix: b", "Fix: c", "d"], ["Fix: a", "Fix: b", "Fix: c", "d"]),
        (["Fix: "] * 2, ["Fix: "] * 2),  # nothing follows
        (["one two three four five six seven eight nine ten eleven: a"] * 2, None),
    ],
)
def test_without_tasks_instructions_are_what_all_rows_begin_with(
    sources: list[str], expected: list[str] | None
) -> None:
    assert strip_instructions(sources, [None] * len(sources)) == (expected or sources)


def test_real_rows(shared: Path) -> None:
    jfleg = read_corrections(shared / "data" / "gec_jfleg_coedit_schema.jsonl")
    assert len(jfleg) == 753
    assert {row.instructed.removesuffix(row.source)[-2:] for row in jfleg} == {": "}
    assert all(len(set(row.references)) == len(row.references) <= 4 for row in jfleg)
    assert jfleg[1].source == "For not use car."
    coedit = read_corrections(shared / "data" / "gec_coedit_rows.jsonl")
    assert sum(row.source != row.instructed for row in coedit) == 40
    pairs = shared / "data" / "gec_pref_coedit.jsonl"
    prompts = read_corrections(pairs, source_column="prompt", target_column="chosen", rows=100)
    assert len(prompts) == 100
    assert all(row.instructed.endswith(": " + row.source) for row in prompts)


def test_references_are_the_target_and_the_further_ones_each_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"src": "a", "tgt": "b", "refs": ["c", "b"]}, {"src": "a", "tgt": "b"})
    assert [row.references for row in read_corrections(path)] == [("b", "c"), ("b",)]
    with pytest.raises(DataError, match='line 2: no "refs"'):
        read_corrections(path, references_column="refs")


def test_rows_without_a_text_or_a_correction_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty: list[dict[str, object]] = [{"src": " ", "tgt": "b"}, {"src": "a", "tgt": None}, {}]
    path = write(tmp_path / "rows.jsonl", {"src": "a", "tgt": "b", "refs": []}, *empty)
    (row,) = read_corrections(path)
    assert (row.source, row.references) == ("a", ("b",))
    assert [record.message for record in caplog.records] == [
        f'{path}: rows without "src" or "tgt" skipped: 3 (the first: line 2).'
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"src": "a"}, 'no "tgt" among its keys'),
        ({"src": "a", "tgt": 3}, '"tgt" is a int, not a string'),
        ({"src": "a", "tgt": "b", "refs": "c"}, '"refs" is not a list of references'),
        ({"src": "a", "tgt": "b", "refs": ["c", 3]}, '"refs" is a int, not a string'),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, object], problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", {"src": "a", "tgt": "b"}, row)
    with pytest.raises(DataError, match=f"line 2: {problem}"):
        read_corrections(path)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        read_corrections(write(tmp_path / "rows.jsonl"))
    with pytest.raises(RequestError, match="rows=0"):
        read_corrections(write(tmp_path / "rows.jsonl", {"src": "a", "tgt": "b"}), rows=0)


def test_a_prompt_is_the_template_around_the_text() -> None:
    tokenizer = tiny_tokenizer()
    assert CorrectionPrompt().ask("He {go}.") == "He {go}.\n"
    asked = CorrectionPrompt("Q: {prompt}\nA: ").ask("x {prompt}")
    assert asked == "Q: x {prompt}\nA: "
    assert prompt_ids(tokenizer, asked) == tokenizer("Q: x {prompt}\nA: ")["input_ids"]
    for template in ("no place", "{prompt} {prompt}"):
        with pytest.raises(RequestError, match="exactly once"):
            CorrectionPrompt(template)


def test_a_chat_goes_through_the_tokenizers_template() -> None:
    tokenizer = tiny_tokenizer()
    prompt = CorrectionPrompt(chat=True)
    messages = prompt.ask("He go.")
    with pytest.raises(SourceError, match="no chat template"):
        prompt_ids(tokenizer, messages)
    tokenizer.chat_template = CHAT
    assert tokenizer.decode(prompt_ids(tokenizer, messages)) == "<user>He go.<end><assistant>"
    assert prompt.row("He go.") == messages
    assert prompt.answer("He goes.") == [{"role": "assistant", "content": "He goes."}]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no tokens"):
        prompt_ids(tiny_tokenizer(), "")
