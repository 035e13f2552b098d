"""Presets as files: on local folders of the same form, which `datasets` treats as it treats the hub's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from tests.processes import killed_in

from smolmoe.data.fetch import catalogue, fetch
from smolmoe.data.presets import PRESETS, documents_of
from smolmoe.data.sources import open_source
from smolmoe.data.text import Document
from smolmoe.errors import DataError, HubError, OutputError, RequestError
from smolmoe.recipe.data import SourceRecipe

DOLLY = [
    {"instruction": f"Say {n}.", "context": "", "response": f"It is {n}." if n % 5 else "", "category": "open_qa"}
    for n in range(100)
]
ARTICLES = [line for n in range(12) for line in ("", f" = Title {n} = ", "", f" Text of {n} . ")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make a preset's data set this folder of files."""

    def at(preset, rows, files=2, suffix="jsonl"):
        folder = tmp_path / "set" / preset
        folder.mkdir(parents=True, exist_ok=True)
        size = -(-len(rows) // files)
        for number in range(files):
            part, file = rows[number * size : (number + 1) * size], folder / f"train-{number}.{suffix}"
            if suffix == "parquet":
                parquet.write_table(pyarrow.Table.from_pylist(part), file, row_group_size=16)
            else:
                file.write_text("".join(json.dumps(row) + "\n" for row in part))
        monkeypatch.setitem(PRESETS, preset, replace(PRESETS[preset], path=str(folder), name=None, split="train"))
        return folder

    return at


def documents_in(folder):
    return list(open_source(SourceRecipe(path=str(folder))).documents())


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.glob("rows-*.jsonl")}


def test_rows_are_the_presets_documents_with_their_columns(tmp_path, place):
    place("dolly", DOLLY)
    out = tmp_path / "out"
    found = fetch("dolly", out, shard_rows=30).to_json()
    assert documents_in(out) == list(documents_of("dolly", DOLLY))
    assert sorted(contents(out)) == [f"rows-0000{n}.jsonl" for n in range(3)]
    first = json.loads((out / "rows-00000.jsonl").read_text().splitlines()[0])
    assert first == {
        "instruction": "Say 1.",
        "context": "",
        "response": "It is 1.",
        "text": "User: Say 1.\nAssistant: It is 1.",
        "domain": "chat",
    }
    assert json.loads((out / "provenance.json").read_text()) == found
    assert (found["rows"], found["whole"], found["licence"], found["domains"]) == (
        80,
        True,
        "cc-by-sa-3.0",
        {"chat": 80},
    )
    assert found["columns"] == ["instruction", "context", "response", "text", "domain"]
    assert found["left_out"] == {"no text": len(DOLLY) - 80}
    for shard in found["shards"]:
        assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]


@pytest.mark.parametrize(
    ("preset", "rows"),
    [("dolly", DOLLY), ("wikitext", [{"text": line} for line in ARTICLES])],
    ids=["dolly", "wikitext"],
)
def test_more_rows_go_on_where_it_stopped(tmp_path, place, preset, rows):
    folder = place(preset, rows)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    found = fetch(preset, parts, rows=7, shard_rows=4).to_json()
    assert [shard["rows"] for shard in found["shards"]] == [4, 3]
    assert not found["whole"]
    with pytest.raises(OutputError, match=r"contains 7 fetched rows.*resume=True"):
        fetch(preset, parts, rows=10)
    before = contents(parts)
    fetch(preset, parts, rows=10, resume=True, shard_rows=4)
    assert documents_in(parts) == list(documents_of(preset, rows))[:10]
    found = fetch(preset, parts, resume=True, shard_rows=4).to_json()
    assert found["left_out"] == fetch(preset, whole).left_out
    assert documents_in(parts) == documents_in(whole) == list(documents_of(preset, rows))
    assert before.items() <= contents(parts).items()
    assert found == fetch(preset, parts, resume=True).to_json()  # nothing more to do
    with pytest.raises(OutputError, match="different split"):
        fetch(preset, parts, split="test", resume=True)
    (folder / "train-0.jsonl").write_text(json.dumps(rows[0]) + "\n")
    fetch(preset, tmp_path / "b", rows=1)
    (folder / "train-0.jsonl").write_text(json.dumps(rows[0] | {"other": 1}) + "\n")
    with pytest.raises(OutputError, match="different content of the data set"):
        fetch(preset, tmp_path / "b", rows=5, resume=True)


def test_parquet_files_as_most_data_sets_have_them(tmp_path, place):
    place("dolly", DOLLY, suffix="parquet")
    for rows in (23, 41, None):  # within the first file, at the second, to the end
        fetch("dolly", tmp_path / "out", rows=rows, resume=True, shard_rows=10)
        assert documents_in(tmp_path / "out") == list(documents_of("dolly", DOLLY))[:rows]


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from smolmoe.data import fetch
from smolmoe.data.presets import PRESETS
PRESETS["dolly"] = replace(PRESETS["dolly"], path=sys.argv[1])
fetch.fetch("dolly", Path(sys.argv[2]), shard_rows=1000, resume=True)
"""


def test_a_kill_loses_the_shard_in_hand_at_most(tmp_path, place):
    rows = [row | {"response": f"{row['response']} yes", "instruction": f"{n}"} for n in range(200) for row in DOLLY]
    folder, out = place("dolly", rows), tmp_path / "out"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    killed = killed_in("smolmoe.data.fetch:_Writing._shard", 4, later=1000)
    done = subprocess.run([sys.executable, "-c", killed + KILLED, str(folder), str(out)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (out / "rows-00002.jsonl").exists()
    assert not (out / "provenance.json").exists()
    kept = contents(out)
    found = fetch("dolly", out, shard_rows=1000, resume=True).to_json()
    assert found["rows"] == len(rows)
    assert documents_in(out) == list(documents_of("dolly", rows))
    again = contents(out)
    assert all(again[name] == kept[name] for name in kept)
    assert not list(out.glob(".*"))


def test_a_licence_that_is_not_free_asks_for_consent(tmp_path, place):
    place("codeparrot", [{"content": "x = 1", "license": "gpl-3.0"}], files=1)
    with pytest.raises(RequestError, match=r"licence is mixed .*accept_licence='mixed'"):
        fetch("codeparrot", tmp_path / "out")
    with pytest.raises(RequestError, match="licence is mixed"):
        fetch("codeparrot", tmp_path / "out", accept_licence="yes")
    assert not (tmp_path / "out").exists()
    assert fetch("codeparrot", tmp_path / "out", accept_licence="mixed").licence == "mixed"
    assert documents_in(tmp_path / "out") == [Document("x = 1", "code")]


def test_the_list_names_licence_size_and_columns():
    known = {entry.preset: entry for entry in catalogue()}
    assert set(known) == set(PRESETS)
    assert [name for name, entry in known.items() if not entry.free] == ["alpaca", "codeparrot"]
    assert known["coedit"].columns == ("src", "tgt")
    assert all(entry.size > 0 and entry.licence for entry in known.values())


def test_bad_requests(tmp_path, place):
    with pytest.raises(DataError, match=r"no such preset.*Did you mean 'dolly'"):
        fetch("doly", tmp_path / "out")
    with pytest.raises(DataError, match=r"nothing to fetch.*preset: embedded"):
        fetch("embedded", tmp_path / "out")
    place("dolly", [{"instruction": "a", "context": "b", "answer": "c"}], files=1)
    with pytest.raises(DataError, match='no "response" among its columns'):
        fetch("dolly", tmp_path / "out")
    with pytest.raises(DataError, match="nope") as caught:
        fetch("dolly", tmp_path / "out", split="nope")
    assert caught.value.field == "split"
    place("dolly", [{"instruction": "", "context": "", "response": ""}], files=1)
    with pytest.raises(DataError, match="contains no text"):
        fetch("dolly", tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="something other than fetched rows"):
        fetch("dolly", tmp_path / "mine", resume=True)


def test_a_hub_that_cannot_be_reached(tmp_path):
    with pytest.raises(HubError, match=r"cannot be read: HF_HUB_OFFLINE is set.*use its path"):
        fetch("tinystories", tmp_path / "out", rows=1)
    assert not (tmp_path / "out").exists()
