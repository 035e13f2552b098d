"""Chat logs, source files and data sets by `hub:` path, read by everything that reads text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers import dense_llama, save

from smolmoe.data.corpus import load_corpus
from smolmoe.data.sources import holds_conversations, open_source
from smolmoe.data.text import Document, read_documents
from smolmoe.errors import DataError, RequestError
from smolmoe.moe.loading import find_tokenizer
from smolmoe.recipe.data import DataRecipe, SourceRecipe
from smolmoe.selection.rows import open_rows

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<end>"
ASKED = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
SAID = [{"from": "human", "value": "two and two?"}, {"from": "gpt", "value": "four"}]
PLAIN = "User: two and two?\nAssistant: four"
ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": ASKED},
    "messages as text": {"messages": json.dumps(ASKED)},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "two and two?"}]}, ASKED[1]]},
    "open end": {"messages": [*ASKED, {"role": "user", "content": "and three?"}]},
    "sharegpt": {"conversations": SAID},
    "alpaca": {"instruction": "two and two?", "input": "", "output": "four"},
    "completion": {"prompt": "two and two?", "completion": "four"},
    "chat completion": {"prompt": ASKED[:1], "completion": ASKED[1:]},
    "response": {"prompt": "two and two?", "response": "four"},
    "question": {"question": "two and two?", "response": "four"},
}


@pytest.fixture
def chat_model(tmp_path: Path) -> str:
    folder = save(dense_llama(), tmp_path / "chat-model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return str(folder)


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(**recipe: Any) -> list[Document]:
    return list(open_source(SourceRecipe(**recipe)).documents())


@pytest.mark.parametrize("form", ROWS)
def test_every_form_of_a_chat_is_the_same_document(form: str, tmp_path: Path, chat_model: str) -> None:
    path = jsonl(tmp_path / "log.jsonl", ROWS[form])
    assert read(path=path) == [Document(PLAIN, "chat")]
    rendered = "<user>two and two?<assistant>four<end>"
    assert read(path=path, chat_template=chat_model) == [Document(rendered, "chat")]
    assert holds_conversations(SourceRecipe(path=path))


def test_the_column_of_the_domain_and_the_recipe_name_the_domain(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", {"messages": ASKED, "domain": "sums", "kind": "other"}, {"messages": ASKED})
    assert [one.domain for one in read(path=path)] == ["sums", "chat"]
    assert [one.domain for one in read(path=path, domain_column="kind")] == ["other", "chat"]
    assert [one.domain for one in read(path=path, domain="all")] == ["all", "all"]


def test_selection_and_training_read_the_same_text(tmp_path: Path, chat_model: str) -> None:
    path = jsonl(tmp_path / "log.jsonl", *({"messages": ASKED, "domain": f"d{n}", "id": n} for n in range(3)))
    source = SourceRecipe(path=path, chat_template=chat_model)
    rows = [row.values for row in open_rows(source).rows()]
    assert [(row["text"], row["domain"]) for row in rows] == [(one.text, one.domain) for one in read(**dict(source))]
    assert rows[2]["id"] == 2
    assert [one.text for one in read_documents(path)] == [PLAIN] * 3


def test_the_template_identifies_the_text(tmp_path: Path, chat_model: str) -> None:
    path = jsonl(
        tmp_path / "log.jsonl", *({"messages": [{"role": "user", "content": f"{n}?"}, ASKED[1]]} for n in range(40))
    )
    kept = {"held_out": 0.3, "length": 16, "cache": str(tmp_path / "cache")}
    tokenizer = find_tokenizer(chat_model)
    plain, rendered = (
        load_corpus(DataRecipe(sources=({"path": path, **more},), **kept), tokenizer)  # type: ignore[arg-type]
        for more in ({}, {"chat_template": chat_model})
    )
    assert plain.fingerprint != rendered.fingerprint
    assert plain.train.tokens != rendered.train.tokens


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", {"messages": ASKED})
    model = str(save(dense_llama(), tmp_path / "base"))
    with pytest.raises(RequestError, match="no chat template"):
        read(path=path, chat_template=model)


def test_rows_of_another_form_are_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", {"messages": ASKED}, {"conversations": SAID})
    with pytest.raises(DataError, match=r'line 2: no "messages" among its keys \(conversations\)') as caught:
        read(path=path)
    assert "other files" in str(caught.value.fix)
    broken = jsonl(tmp_path / "broken.jsonl", {"messages": ASKED}, {"messages": [{"content": "x"}]})
    with pytest.raises(DataError, match="without role and content") as caught:
        read(path=broken)
    assert str(caught.value.value).endswith("broken.jsonl, line 2")


def test_a_chat_without_an_answer_is_counted_as_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = {"role": "user", "content": [{"type": "image"}]}
    path = jsonl(tmp_path / "log.jsonl", {"messages": ASKED[:1]}, {"messages": [image, ASKED[1]]}, {"messages": ASKED})
    assert len(read(path=path)) == 1
    assert "rows without text skipped: 2" in caplog.text


def test_source_files_are_documents_and_subfolders_domains(tmp_path: Path) -> None:
    for name, text in (
        ("py/a.py", "def a():\n\n    return 1\n"),
        ("py/deep/b.md", "# b\n"),
        ("notes/c.txt", "one\n\ntwo"),
    ):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_text(text, encoding="utf-8")
    folder = str(tmp_path / "all")
    assert read(path=folder, by_folder=True) == [
        Document("one", "notes"),
        Document("two", "notes"),
        Document("def a():\n\n    return 1\n", "py"),
        Document("# b\n", "py"),
    ]
    assert {one.domain for one in read(path=folder)} == {None}
    rows = [row.values for row in open_rows(SourceRecipe(path=folder, by_folder=True)).rows()]
    assert [row["domain"] for row in rows] == ["notes", "notes", "py", "py"]
    (tmp_path / "all/py/c.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8"):
        read(path=folder)


def test_scripts_next_to_rows_are_not_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jsonl(tmp_path / "set/rows.jsonl", {"text": "one"})
    (tmp_path / "set/make.py").write_text("print()")
    assert read(path=str(tmp_path / "set")) == [Document("one")]
    assert "make.py (a document or script next to files of rows)" in caplog.text


def test_a_hub_path_names_configuration_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def parts(path: str) -> tuple[str | None, ...]:
        found = SourceRecipe(path=path)
        return found.path, found.name, found.split

    assert parts("hub:me/set") == ("hub:me/set", None, None)
    assert parts("hub:me/set:small") == ("hub:me/set", "small", None)
    assert parts("hub:me/set:test") == ("hub:me/set", None, "test")
    assert parts("hub:me/set:small:train[:20]") == ("hub:me/set", "small", "train[:20]")
    folder = tmp_path / "set"
    jsonl(folder / "train.jsonl", *({"messages": ASKED, "domain": "sums"} for _ in range(2)))
    jsonl(folder / "test.jsonl", {"messages": ASKED, "domain": "other"})
    assert [one.domain for one in read(path=f"hub:{folder}")] == ["sums", "sums"]
    assert read(path=f"hub:{folder}:test") == [Document(PLAIN, "other")]
    rows = [row.values for row in open_rows(SourceRecipe(path=f"hub:{folder}:test")).rows()]
    assert [(row["text"], row["domain"]) for row in rows] == [(PLAIN, "other")]
