"""Each preset on rows of its data set's schema."""

from __future__ import annotations

import json
import re

import pytest

from smolmoe.data.presets import PRESETS, documents_of
from smolmoe.data.text import Document
from smolmoe.errors import DataError


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("preset", "file", "domains"),
    [
        ("tinystories", "stories_tinystories", {"stories"}),
        ("cosmopedia-100k", "cosmopedia_relabelled", {"web"}),
        ("dolly", "chat_dolly_sample", {"chat"}),
        ("dolly", "chat_self_instruct_dolly_schema", {"chat"}),
        ("coedit", "gec_coedit_rows", {"correction"}),
        ("llama-nemotron", "nemotron_relabelled", {"chat", "code", "math"}),
    ],
)
def test_real_rows_of_its_schema(shared, preset, file, domains):
    rows = rows_of(shared / f"data/{file}.jsonl")
    documents = list(documents_of(preset, rows))
    assert len(documents) >= 0.95 * len(rows)
    assert {document.domain for document in documents} == domains
    answers = {"dolly": "response", "coedit": "tgt", "llama-nemotron": "output"}
    if len(documents) == len(rows):
        for document, row in zip(documents, rows, strict=True):
            assert document.text.endswith(row[answers.get(preset, "text")].strip())


def test_a_dolly_row_is_a_dialogue():
    row = {"instruction": "Which is it?", "context": "Red or blue.", "response": "Red. ", "category": "closed_qa"}
    bare = {**row, "context": "", "response": "Neither."}
    assert list(documents_of("dolly", [row, bare, {**row, "response": ""}])) == [
        Document("User: Which is it?\nRed or blue.\nAssistant: Red.", "chat"),
        Document("User: Which is it?\nAssistant: Neither.", "chat"),
    ]


def test_a_coedit_row_is_the_task_and_its_result():
    row = {"_id": "1", "task": "gec", "src": "Fix grammar: He go.", "tgt": "He goes."}
    assert list(documents_of("coedit", [row])) == [Document("Fix grammar: He go.\nHe goes.", "correction")]


def test_a_nemotron_row_keeps_its_turns_and_its_category():
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "Add 1 and 1.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [
        {"input": messages, "output": "2", "category": "math", "system_prompt": "detailed thinking off"},
        {"input": "As a string?", "output": "Yes.", "category": ""},
        {"input": [], "output": "To nothing."},
    ]
    assert list(documents_of("llama-nemotron", rows)) == [
        Document(
            "System: detailed thinking off\nUser: Hi.\nAssistant: Hello.\nUser: Add 1 and 1.\nAssistant: 2", "math"
        ),
        Document("User: As a string?\nAssistant: Yes.", "chat"),
    ]
    with pytest.raises(DataError, match="neither a string nor a list of messages"):
        list(documents_of("llama-nemotron", [{"input": 7, "output": "x"}]))


def test_codeparrot_reads_its_content():
    row = {"repo_name": "a/b", "path": "c.py", "copies": "1", "size": "9", "content": "x = 1\n", "license": "mit"}
    assert list(documents_of("codeparrot", [row, {**row, "content": " \n"}])) == [Document("x = 1", "code")]


def test_wikitext_lines_are_joined_to_articles():
    lines = [
        "",
        " = One = \n",
        "",
        " First paragraph . \n",
        "",
        " = = Section = = \n",
        "",
        " Of the first article . \n",
        " = not a title = \n",  # no empty line before it
        "",
        " = = = Deeper = = = \n",
        "",
        " = Two = \n",
        "",
        " Another . \n",
    ]
    assert list(documents_of("wikitext", [{"text": line} for line in lines])) == [
        Document(
            "= One =\nFirst paragraph .\n= = Section = =\nOf the first article .\n= not a title =\n= = = Deeper = = =",
            "wiki",
        ),
        Document("= Two =\nAnother .", "wiki"),
    ]


def test_real_articles_are_found_again(shared):
    articles = [row["text"] for row in rows_of(shared / "data/wiki_wikitext2.jsonl")]
    lines = [line for text in articles for line in ("", *(f" {line} \n" for line in text.split("\n")))]
    assert [document.text for document in documents_of("wikitext", [{"text": line} for line in lines])] == [
        re.sub(r"[ \t]*\n[ \t]*", "\n", text.strip()) for text in articles
    ]


def message(id_, parent, role, text, rank=None, **more):
    return {"message_id": id_, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en", **more}


def test_oasst_follows_the_best_ranked_replies():
    rows = [
        message("b1", "b", "assistant", "B one.", rank=None),
        message("a", None, "prompter", "A?"),
        message("a1", "a", "assistant", "Worse.", rank=1),
        message("a2", "a", "assistant", "Best.", rank=0),
        message("a3", "a", "assistant", "Deleted.", rank=-1, deleted=True),
        message("a1x", "a1", "prompter", "Not taken."),
        message("a2x", "a2", "prompter", "More?"),
        message("a2xx", "a2x", "assistant", "More."),
        message("a2xxx", "a2xx", "prompter", "Unanswered."),
        message("b", None, "prompter", "B?"),
        message("c", None, "prompter", "Never answered."),
        message("d", "nowhere", "assistant", "An orphan."),
    ]
    assert list(documents_of("oasst1", rows)) == [
        Document("User: A?\nAssistant: Best.\nUser: More?\nAssistant: More.", "chat"),
        Document("User: B?\nAssistant: B one.", "chat"),
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_missing_column_is_named_with_those_that_are_there(preset):
    lost = PRESETS[preset].columns[-1]
    row = {**dict.fromkeys(PRESETS[preset].columns, "x"), f"{lost}s": "x"}
    del row[lost]
    with pytest.raises(DataError, match=rf'row 1: no "{lost}" among its columns \(.*{lost}s') as caught:
        list(documents_of(preset, [row]))
    assert f"Did you mean '{lost}s'?" in str(caught.value.fix)


def test_what_is_no_text_is_refused():
    with pytest.raises(DataError, match='"text" is a int, not a string'):
        list(documents_of("tinystories", [{"text": 7}]))


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"no such preset.*Did you mean 'tinystories'"):
        list(documents_of("tinystory", []))
    with pytest.raises(DataError, match=r"Presets: .*wikitext.*embedded\."):
        list(documents_of("zzz", []))
