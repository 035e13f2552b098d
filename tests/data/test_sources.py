"""Sources: local files and folders, data sets through `datasets`, the embedded corpus; what identifies them."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from smolmoe.data import sources
from smolmoe.data.presets import PRESETS
from smolmoe.data.sources import look_at, open_source
from smolmoe.data.text import Document
from smolmoe.errors import DataError, HubError
from smolmoe.recipe.data import SourceRecipe
from smolmoe.selection.rows import open_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(**recipe):
    return list(open_source(SourceRecipe(**recipe)).documents())


def test_a_folder_is_read_file_by_file_in_the_order_of_their_names(tmp_path):
    jsonl(tmp_path / "data/b.jsonl", [{"body": "third", "kind": "x"}, {"body": ""}, {"body": None}])
    (tmp_path / "data/a.txt").write_text("first\n\nsecond\n")
    parquet.write_table(pyarrow.table({"body": ["fourth"], "kind": ["y"]}), tmp_path / "data/c.parquet")
    (tmp_path / "data/notes.md").write_text("not read")
    folder = str(tmp_path / "data")
    assert read(path=folder, text="body", domain_column="kind") == [
        Document("first"),
        Document("second"),
        Document("third", "x"),
        Document("fourth", "y"),
    ]
    fixed = read(path=folder, text="body", domain_column="kind", domain="z", rows=3)
    assert fixed == [Document(text, "z") for text in ("first", "second", "third")]


def test_identity_is_of_the_contents_and_the_options(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", [{"text": "one", "body": "1"}]))
    moved = str(jsonl(tmp_path / "elsewhere/b.jsonl", [{"text": "one", "body": "1"}]))

    def identity(**recipe):
        return open_source(SourceRecipe(**recipe)).identity

    first = identity(path=path)
    assert identity(path=moved) == identity(path=path, weight=2.0) == first
    for other in ({"rows": 1}, {"domain": "x"}, {"text": "body"}, {"domain_column": "x"}):
        assert identity(path=path, **other) != first
    jsonl(tmp_path / "a.jsonl", [{"text": "two", "body": "1"}])
    assert identity(path=path) != first


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("absent.jsonl", "no such file or folder"),
        ("./absent", "no such file or folder"),
        ("/absent/folder", "no such file or folder"),
        ("a/b/c", "no such file or folder"),
        ("{tmp}/empty", "this folder contains no text file"),
        ("{tmp}/a.doc", r"\.doc is not a text format"),
        ("{tmp}/named", r"this folder contains no text file \(not read: a\.doc \(unsupported format: \.doc\)\)"),
        ("absent.csv.gz", "no such file or folder"),
    ],
)
def test_paths_that_hold_nothing(tmp_path, path, wrong):
    (tmp_path / "empty").mkdir()
    (tmp_path / "named").mkdir()
    for file in ("a.doc", "named/a.doc", "named/README.md", "named/.hidden.jsonl"):
        (tmp_path / file).write_text("text")
    with pytest.raises(DataError, match=wrong):
        read(path=path.format(tmp=tmp_path))


def test_a_column_that_is_not_there(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", [{"texts": "x", "id": 1}]))
    with pytest.raises(DataError, match=r'line 1: no "text" among its keys \(texts, id\)\. Did you mean .texts.'):
        read(path=path)
    assert read(path=path, text="texts", domain_column="id") == [Document("x", "1")]  # as `data select` groups them
    with pytest.raises(DataError, match='line 1: "id" is a int, not a string'):
        read(path=path, text="id")


def test_corrupt_files(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(path=str(tmp_path / "a.parquet"))
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match="byte 30 is not UTF-8"):
        read(path=str(tmp_path / "b.jsonl"))


ROWS = [{"text": f"text {n}", "domain": f"d{n % 3}", "other": n} for n in range(20)]


def open_set(folder, split="train", preset=None, **recipe):
    """What a hub data set is opened with, on a local folder: `datasets` treats both alike."""
    return sources._data_set(SourceRecipe(path="owner/name", **recipe), str(folder), None, split, preset)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_datasets_library(tmp_path, streaming):
    jsonl(tmp_path / "set/train.jsonl", ROWS)
    source = open_set(tmp_path / "set", streaming=streaming)
    for _ in range(2):  # from the start again
        assert list(source.documents()) == [Document(row["text"], row["domain"]) for row in ROWS]
    assert (source.streamed, source.expected) == ((True, None) if streaming else (False, 20))
    assert open_set(tmp_path / "set", streaming=streaming).identity == source.identity
    with pytest.raises(DataError, match=r'no "txt" among its columns .*Did you mean .text.'):
        open_set(tmp_path / "set", streaming=streaming, text="txt")
    with pytest.raises(DataError, match="nope") as caught:
        open_set(tmp_path / "set", "nope", streaming=streaming)
    assert caught.value.field == "split"
    jsonl(tmp_path / "set/train.jsonl", [*ROWS, {"text": "more", "domain": "d", "other": 1}])
    assert open_set(tmp_path / "set", streaming=streaming).identity != source.identity


def test_a_shuffled_stream_is_the_same_each_time(tmp_path):
    jsonl(tmp_path / "set/train.jsonl", ROWS)
    texts = [[d.text for d in open_set(tmp_path / "set", streaming=True, shuffle_buffer=8).documents()] for _ in "ab"]
    assert texts[0] == texts[1] != [row["text"] for row in ROWS]
    assert sorted(texts[0]) == sorted(row["text"] for row in ROWS)
    with pytest.raises(DataError, match="rows are parts of documents"):
        open_source(SourceRecipe(preset="wikitext", streaming=True, shuffle_buffer=8))


def test_a_preset_reads_a_data_set(tmp_path):
    row = {"instruction": "Why?", "context": "", "response": "Because.", "category": "open_qa"}
    jsonl(tmp_path / "set/train.jsonl", [row])
    recipe = SourceRecipe(preset="dolly")
    source = sources._data_set(recipe, str(tmp_path / "set"), None, "train", PRESETS["dolly"])
    assert list(source.documents()) == [Document("User: Why?\nAssistant: Because.", "chat")]
    with pytest.raises(DataError, match='no "src" among its columns'):
        sources._data_set(SourceRecipe(preset="coedit"), str(tmp_path / "set"), None, "train", PRESETS["coedit"])


def test_a_data_set_that_cannot_be_had():
    with pytest.raises(HubError) as caught:
        open_source(SourceRecipe(path="nobody/nothing"))
    assert caught.value.value == "nobody/nothing"
    assert ".jsonl" in str(caught.value.fix) or "log in" in str(caught.value.fix)
    with pytest.raises(DataError, match="Did you mean 'dolly'"):
        open_source(SourceRecipe(preset="dollly"))


DOLLY = {"instruction": "Why?", "context": "", "response": "Because.", "category": "open_qa"}
ON_DISK = {
    "dolly": ([DOLLY], [Document("User: Why?\nAssistant: Because.", "chat")]),
    "alpaca": ([{"instruction": "a", "input": "b", "output": "c"}], [Document("User: a\nb\nAssistant: c", "chat")]),
    "gsm8k": ([{"question": "1 + 1?", "answer": "2"}], [Document("1 + 1?\n2", "math")]),
    "mbpp": ([{"text": "Write f.", "code": "f = 1", "test_list": ["assert f"]}], [Document("Write f.\nf = 1", "code")]),
    "coedit": ([{"src": "Fix: he go", "tgt": "he goes"}], [Document("Fix: he go\nhe goes", "correction")]),
    "llama-nemotron": (
        [{"input": [{"role": "user", "content": "Hi"}], "output": "Yes?", "category": "math"}],
        [Document("User: Hi\nAssistant: Yes?", "math")],
    ),
    "oasst1": (
        [
            {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"},
            {"message_id": "b", "parent_id": "a", "text": "Yes?", "role": "assistant"},
        ],
        [Document("User: Hi\nAssistant: Yes?", "chat")],
    ),
}


@pytest.mark.parametrize("name", ON_DISK)
def test_rows_of_a_known_data_set_on_disk(tmp_path, name, caplog):
    rows, documents = ON_DISK[name]
    empty = dict.fromkeys(rows[0])
    path = str(jsonl(tmp_path / "a.jsonl", [*rows, empty]))
    for recipe in (SourceRecipe(path=path), SourceRecipe(path=path, preset=name)):
        caplog.clear()
        again = SourceRecipe.model_validate(recipe.model_dump())  # as a run has it on record
        assert list(open_source(again).documents()) == documents
        said = [record.message for record in caplog.records]
        assert any("judging by the columns, rows of " + name in line for line in said) == (recipe.preset is None)
        assert any("rows without text skipped: 1" in line for line in said)
        found = list(open_rows(recipe, quiet=True).rows())
        assert [row.values["text"] for row in found if row.values["text"]] == [one.text for one in documents]
    assert open_source(SourceRecipe(path=path)).identity["presets"] == [name]
    chosen = jsonl(tmp_path / "b.jsonl", [{**rows[0], "text": "own", "domain": "own"}])  # as `data select` writes them
    assert read(path=str(chosen)) == [Document("own", "own")]


def test_a_known_data_set_is_named_with_the_columns_that_are_not_used(tmp_path, caplog):
    look_at(SourceRecipe(path=str(jsonl(tmp_path / "a.jsonl", [DOLLY]))))
    assert caplog.records[0].message == (
        "a.jsonl: judging by the columns, rows of dolly (instruction, context, response); not used: category."
    )


def test_what_can_be_said_before_anything_is_read(tmp_path, caplog):
    jsonl(tmp_path / "data/a.jsonl", ROWS)
    (tmp_path / "data/b.doc").write_text("x")
    look_at(SourceRecipe(path=str(tmp_path / "data")))
    assert "1 of 2 files is not read: b.doc" in caplog.records[0].message
    with pytest.raises(DataError, match="no such file or folder"):
        look_at(SourceRecipe(path=str(tmp_path / "absent.jsonl.gz")))
    with pytest.raises(DataError, match="no such preset"):
        look_at(SourceRecipe(preset="doly"))
    look_at(SourceRecipe(preset="embedded"))
    look_at(SourceRecipe(path="owner/name"))


def test_faults_in_a_known_data_set_are_named_with_their_place(tmp_path):
    path = str(jsonl(tmp_path / "a.jsonl", [DOLLY, {**DOLLY, "response": 3}]))
    with pytest.raises(DataError, match=r'"response" is a int, not a string') as caught:
        read(path=path)
    assert caught.value.value == f"{path}, line 2"
    with pytest.raises(DataError, match='no "src" among its keys'):
        read(path=path, preset="coedit")
