"""Reading documents, and cutting them into token sequences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from smolmoe.data.text import Document, default_documents, encode, read_documents, write_documents
from smolmoe.errors import DataError


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"?": 0, **{str(n): n for n in range(1, 2000)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_jsonl_keeps_text_and_domain(tmp_path):
    rows = [{"text": "a\u2028b", "domain": "code"}, {"text": "second"}, {"text": "third", "domain": None, "id": 3}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = _write(tmp_path / "a.jsonl", f"\ufeff{lines}\n\n")
    assert read_documents(path) == [Document("a\u2028b", "code"), Document("second"), Document("third")]


def test_what_is_written_is_read_back(tmp_path):
    documents = [Document("über\n\n×", "math"), Document("plain")]
    write_documents(tmp_path / "a.jsonl", documents)
    assert read_documents(tmp_path / "a.jsonl") == documents


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"text": "open', "line 2: not JSON (Unterminated string"),
        ('["text"]', "line 2: a JSON list, not an object"),
        ('{"content": "x", "id": 1}', 'line 2: no "text" among its keys (content, id)'),
        ('{"text": 7}', 'line 2: "text" is a int, not a string'),
        ('{"text": ' + "9" * 5000 + "}", "line 2: not JSON (Exceeds the limit"),
        ('{"text": "x", "domain": ["code"]}', 'line 2: "domain" is a list, not a string'),
    ],
)
def test_bad_line_is_named(tmp_path, line, wrong):
    path = _write(tmp_path / "bad.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(DataError) as caught:
        read_documents(path)
    assert wrong in str(caught.value)
    assert caught.value.value == str(path)
    assert '{"text": "...", "domain": "..."}' in str(caught.value.fix)


def test_text_file_is_split_at_blank_lines(tmp_path):
    path = _write(tmp_path / "a.txt", "one\ntwo\n \n\n  three\n")
    assert read_documents(path) == [Document("one\ntwo"), Document("three")]


def test_text_without_blank_line_is_one_document(tmp_path):
    assert read_documents(_write(tmp_path / "a.txt", "one\r\ntwo\n")) == [Document("one\ntwo")]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"text": ["a", "b"], "domain": ["code", None], "other": [1, 2]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet") == [Document("a", "code"), Document("b")]
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "b.parquet")
    assert read_documents(tmp_path / "b.parquet") == [Document("a")]
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r'no "text" among its columns \(body\)'):
        read_documents(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_documents(_write(tmp_path / "d.parquet", "no parquet"))


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("a.doc", "text", r"\.doc is not a text format.*\.jsonl, .*\.txt .*\.parquet"),
        ("a.csv", "text", "contains no text"),
        ("a.txt", b"caf\xe9", "byte 3 is not UTF-8"),
        ("a.txt", " \n", "contains no text"),
        ("a.jsonl", "", "contains no text"),
    ],
)
def test_unreadable_files(tmp_path, name, content, wrong):
    with pytest.raises(DataError, match=wrong):
        read_documents(_write(tmp_path / name, content))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_documents(tmp_path / "absent.txt")


def test_default_documents_are_quick_and_balanced():
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        documents = default_documents()
    finally:
        sys.setprofile(before)
    assert calls < 10_000_000  # about 2 million, in a fifth of a second
    counts = {domain: sum(document.domain == domain for document in documents) for domain in ("code", "prose", "math")}
    assert min(counts.values()) == max(counts.values()) >= 8, counts
    assert documents == default_documents()
    assert documents != default_documents(seed=1)


def test_encode_gives_unequal_lengths_in_range(tokenizer):
    documents = [Document(" ".join(str(n) for n in range(start, start + 40))) for start in range(1, 1000, 40)]
    sequences = encode(tokenizer, documents, 32, 12, seed=3)
    lengths = [len(ids) for ids in sequences]
    assert len(set(lengths)) == 12
    assert 16 <= min(lengths) < max(lengths) <= 32
    # Each begins a document of its own and goes on in its order.
    assert len({ids[0] for ids in sequences}) == 12
    assert all(ids == list(range(ids[0], ids[0] + len(ids))) for ids in sequences)
    assert sequences == encode(tokenizer, documents, 32, 12, seed=3)
    assert sequences != encode(tokenizer, documents, 32, 12, seed=4)


def test_encode_joins_short_documents_and_goes_round(tokenizer):
    sequences = encode(tokenizer, [Document("1 2 3"), Document("7 8")], 10, 8)
    assert all(5 <= len(ids) <= 10 for ids in sequences)
    assert {token for ids in sequences for token in ids} == {1, 2, 3, 7, 8}
    assert len({len(ids) for ids in sequences[:6]}) == 6  # 5 to 10 before any comes twice


@pytest.mark.parametrize(("length", "count", "field"), [(1, 4, "length"), (8, 0, "count")])
def test_encode_refuses_sizes(tokenizer, length, count, field):
    with pytest.raises(DataError) as caught:
        encode(tokenizer, [Document("1 2")], length, count)
    assert caught.value.field == field


@pytest.mark.parametrize("documents", [[], [Document(" ")]])
def test_encode_refuses_documents_without_tokens(tokenizer, documents):
    with pytest.raises(DataError, match="no tokens"):
        encode(tokenizer, documents, 8, 2)


def test_data_modules_do_not_import_torch():
    code = (
        "import sys, smolmoe.data.text, smolmoe.data.embedded; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
