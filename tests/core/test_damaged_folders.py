"""What a run is resumed from, damaged: the file is named, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tokenizer
from tests.training.runs import write_text

from smolmoe.alignment.pairs import Answered, PairsFolder, Shard
from smolmoe.core.files import write_json
from smolmoe.core.run_folder import begin_folder
from smolmoe.distillation import folder as cache_folder
from smolmoe.distillation.text import open_text, read_text
from smolmoe.distillation.text import write_text as write_store
from smolmoe.errors import OutputError, SmolmoeError
from smolmoe.teacher.journal import Journal

ASKED = {"seed": 1}
REQUEST = {"teacher": {}, "tokenizer": "x", "text": {}, "options": {"size": 4}}


def _run(out: Path, **options: Any) -> None:
    begin_folder(out, ASKED, what="a run", record="settings.json", made=("model",), **options)


def _pairs(out: Path, *, overwrite: bool = False) -> None:
    folder = PairsFolder(out, ASKED, resume=not overwrite, overwrite=overwrite)
    if not folder.has_shard(0):
        row = Answered(0, "p", ("a", "b"), ("a", "b"), ("c",))
        folder.write_shard(0, Shard((row,), seconds=1.0, new_tokens=2, cut=0))
    list(folder.shards(1))


def _cache(out: Path, *, overwrite: bool = False) -> None:
    cache_folder.open_folder(out, REQUEST, resume=not overwrite, overwrite=overwrite)
    out.mkdir(exist_ok=True)
    write_json(out / "request.json", REQUEST)


def _text(out: Path) -> None:
    if not (out / ".text").is_dir():
        out.mkdir()
        source = write_text(out / "text.jsonl", documents=4)
        write_store(open_text([str(source)]), tiny_tokenizer(), out / ".text", lambda stage, done, total: None)
    read_text(out / ".text", tiny_tokenizer(), check=True)


def _journal(out: Path) -> None:
    journal = Journal.open(out / "journal.ndjson", ASKED, resume=True)
    for name in ("a", "b"):
        if name not in journal.answered:
            counts = {"prompt_tokens": 1, "answer_tokens": 1}
            answer = {"text": "yes", "finish_reason": "stop", "model": "m", "logprobs": None, **counts}
            journal.add({"id": name, "tries": 1, **counts, "answer": answer})
    journal.close()


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "settings": (_run, "settings.json"),
    "pairs": (_pairs, "run.json"),
    "samples": (_pairs, "samples/00000.json"),
    "a cache": (_cache, "request.json"),
    "an index": (_text, ".text/tokens.index.npz"),
    "a text": (_text, ".text/tokens.ids"),
    "a journal": (_journal, "journal.ndjson"),
}


@pytest.mark.parametrize("content", [b"\xff\xfe\xff\xff\n" * 40, b"[]\n", b"null\n", b"[" * 50_000 + b"\n"])
@pytest.mark.parametrize("case", FILES)
def test_a_damaged_file_is_named(tmp_path: Path, case: str, content: bytes) -> None:
    go, name = FILES[case]
    out = tmp_path / "out"
    go(out)
    go(out)  # as it is resumed
    (out / name).write_bytes(content)
    with pytest.raises(SmolmoeError) as refused:
        go(out)
    assert (name if not name.startswith(".text") else ".text") in str(refused.value)
    assert refused.value.fix


def test_an_answer_that_is_no_text_is_named(tmp_path: Path) -> None:
    _journal(tmp_path)
    file = tmp_path / "journal.ndjson"
    header, first, second = file.read_text().splitlines()
    file.write_text("\n".join([header, json.dumps({**json.loads(first), "answer": 3}), second, ""]))
    with pytest.raises(SmolmoeError, match="line 2 is not an entry"):
        _journal(tmp_path)


@pytest.mark.parametrize(("go", "made"), [(_run, "model/x"), (_pairs, "pairs.jsonl"), (_cache, "shard-00000/ids.npy")])
@pytest.mark.parametrize("linked", [True, False])
def test_starting_over_leaves_the_users_files(tmp_path: Path, go: Any, made: str, linked: bool) -> None:
    out = tmp_path / "out"
    if linked:
        out.symlink_to(tmp_path / "disk")
        (tmp_path / "disk").mkdir()
    go(out)
    for name in ("notes.txt", "mine/a.txt", made):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    go(out, overwrite=True)
    assert (out / "notes.txt").is_file()
    assert (out / "mine" / "a.txt").is_file()
    assert not (out / made).exists()
    assert out.is_symlink() == linked


@pytest.mark.parametrize(("go", "name"), [(_run, "settings"), (_pairs, "run"), (_cache, "request")])
def test_killed_as_it_begins_it_can_be_started(tmp_path: Path, go: Any, name: str) -> None:
    (tmp_path / f".{name}.json.partial").write_text("{")
    go(tmp_path)
    (tmp_path / f"{name}.json").unlink()
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"something (else|other)"):
        go(tmp_path)
