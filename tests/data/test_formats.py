"""Every format and compression gives the same documents; what is not read is named, what is left out is counted."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma

import pyarrow
import pytest
from pyarrow import parquet

from smolmoe.data.corpus import load_corpus
from smolmoe.data.folders import find_files
from smolmoe.data.formats import rows_of
from smolmoe.data.sources import open_source
from smolmoe.data.text import Document, read_documents
from smolmoe.errors import DataError
from smolmoe.recipe.data import DataRecipe, SourceRecipe
from smolmoe.selection.rows import open_rows

ROWS = [{"text": f'caf\u00e9 "{number}",\nand\ttab', "domain": str(number % 2)} for number in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def separated(separator):
    cells = [["domain", "text"], *([row["domain"], row["text"]] for row in ROWS)]
    quoted = (separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells)
    return ("\r\n".join(quoted) + "\r\n").encode()


def table(path):
    found = pyarrow.table({name: [row[name] for row in ROWS] for name in ("domain", "text")})
    if path.suffix == ".parquet":
        parquet.write_table(found, path)
        return
    kind = pyarrow.ipc.new_file if "file" in path.name else pyarrow.ipc.new_stream
    with pyarrow.OSFile(str(path), "wb") as sink, kind(sink, found.schema) as writer:
        writer.write_table(found, max_chunksize=2)


FILES = {
    "a.jsonl": LINES,
    "a.JSONL": LINES.replace(b"\n", b"\r\n"),
    "a.ndjson": b"\xef\xbb\xbf" + LINES,
    "a.json": LINES,
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "a.csv": separated(","),
    "a.tsv": separated("\t"),
    "a.jsonl.gz": gzip.compress(LINES),
    "parts.jsonl.gz": gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]),
    "a.jsonl.zst": zstd(LINES),
    "parts.jsonl.zst": zstd(LINES[:100]) + zstd(LINES[100:]),
    "a.json.xz": lzma.compress(json.dumps(ROWS).encode()),
    "a.csv.BZ2": bz2.compress(separated(",")),
    "a.parquet": None,
    "stream.arrow": None,
    "file.arrow": None,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same(tmp_path, name):
    path, content = tmp_path / name, FILES[name]
    if content is None:
        table(path)
    else:
        path.write_bytes(content)
    wanted = [Document(row["text"], row["domain"]) for row in ROWS]
    for place in (path, tmp_path):
        recipe = SourceRecipe(path=str(place))
        assert list(open_source(recipe).documents()) == wanted
        assert [row.values for row in open_rows(recipe).rows()] == ROWS
    assert read_documents(path) == wanted


def test_text_is_cut_at_blank_lines_whatever_it_is_packed_in(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    assert read_documents(tmp_path / "a.txt.gz") == [Document("one"), Document("two")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-20], "cannot be decompressed"),  # its name is one in all workers
        ("a.jsonl.gz", LINES, "cannot be decompressed"),
        ("a.jsonl.zst", zstd(LINES)[:-9], "cannot be decompressed"),
        ("a.jsonl.xz", LINES, "cannot be decompressed"),
        ("a.jsonl.bz2", bz2.compress(LINES)[:-9], "cannot be decompressed"),
        ("a.jsonl", LINES + b'{"text": "caf\xe9"}', "line 6: byte 283 is not UTF-8"),
        ("a.jsonl", LINES + b"\0\0", "line 6: byte 270 is NUL"),
        ("a.txt", "text".encode("utf-16-le"), "line 1: byte 1 is NUL"),
        ("a.csv", b'text\n"open', "line 2: not CSV"),
        ("a.csv", b"text\na,b\n", "line 2: 2 cells, but the header has 1"),
        ("a.csv", b"text,text\na,b\n", "line 1: two columns are called 'text'"),
        ("a.csv", b"txt\na\n", r'no "text" among its columns \(txt\)'),
        ("a.json", b'{"data": []\n}', r"one JSON dict with the keys data, not rows"),
        ("a.json", b"[{}, 3]", "row 2: a JSON int, not an object"),
        ("a.json", b"[\n{]", "not JSON .*line 2, column 2"),
        ("a.jsonl", LINES + b'{"text": "a", "text": "b"}', "line 6: the key 'text' is given twice"),
        ("a.jsonl", b'{"text": "a", "about": {"x": 1, "x": 2}}', "line 1: the key 'x' is given twice"),
        ("a.json", b'[\n{"text": "a"},\n{"text": "a", "text": "b"}]', "row 2: the key 'text' is given twice"),
        ("a.parquet", b"PAR1", "not a readable parquet file"),
        ("a.arrow", b"ARROW1 and nothing", "not a readable arrow file"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(rows_of(tmp_path / name, ("text",), ()))
    assert caught.value.value == str(tmp_path / name)


def test_a_table_with_two_columns_of_one_name_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        list(rows_of(tmp_path / "a.parquet", ("text",), ()))


def test_a_folder_reads_what_it_can_and_names_the_rest(tmp_path, caplog):
    files = {
        "part-00.jsonl": LINES,
        "sub/part-01.JSONL.gz": gzip.compress(LINES),
        "part-02.doc": b"x",
        "part-03.jsonl.lz4": b"x",
        "about.json": b'{"version": 1,\n"rows": 5}',
        "settings.json": b'{"version": 1}\n',
    }
    none = ["README.md", "LICENSE", "a.sha256", "SHA256SUMS", "dataset_infos.json", "_SUCCESS", ".cache/x.jsonl"]
    for name, content in {**files, **dict.fromkeys(none, b"x")}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    source = open_source(SourceRecipe(path=str(tmp_path)))
    assert len(list(source.documents())) == 10  # the linked folder is the same one, read once
    assert {file.name for file in source.files.unread} == {*files} - {"part-00.jsonl", "sub/part-01.JSONL.gz"}
    assert len(source.files.passed_over) == len(none)
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("4 of 6 files are not read: about.json (it is one JSON dict with the keys version, rows")
    for name in ("settings.json (no column", "part-02.doc", "part-03.jsonl.lz4 (unsupported format: .lz4)"):
        assert name in said
    caplog.clear()
    assert len(list(open_rows(SourceRecipe(path=str(tmp_path)), quiet=True).rows())) == 10
    assert not caplog.records


@pytest.mark.parametrize(
    ("record", "others"),
    [
        ("indices.json", ["report.json", "held-out.jsonl"]),
        ("journal.ndjson", ["failed.ndjson", "logprobs.ndjson", "report.json", "targets/a.json"]),
        ("provenance.json", ["state.json"]),
        ("run.json", ["report.json", "samples/00000.json"]),
    ],
)
def test_what_our_commands_write_next_to_their_rows_is_no_data(tmp_path, record, others):
    for name in ("rows.jsonl", record, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    found = find_files(tmp_path)
    assert [file.name for file in found.files] == ["rows.jsonl"]
    assert not found.unread


def test_rows_without_text_are_left_out_and_counted(tmp_path, caplog):
    rows = ['{"text": "a", "domain": 3}', "{}", "null", '{"text": null}', '{"text": " "}', '{"text": "half \\ud83d"}']
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows))
    assert read_documents(path) == [Document("a", "3"), Document("half ?")]
    first, second = (record.message for record in caplog.records)
    assert first == f"{path}: rows without text skipped: 4 (the first: {path}, line 2)."
    assert second == f'{path}: texts with half a surrogate pair, read as "?": 1 (the first: {path}, line 6).'
    caplog.clear()
    source = {"path": str(path), "domain_column": "domain"}
    assert sum(1 for _ in open_rows(SourceRecipe(**source)).rows()) == 6


def test_training_says_what_it_left_out_from_the_cache_too(tmp_path, caplog):
    from helpers import tiny_tokenizer

    for name, text in (("train", "a b c"), ("held", "d e f")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(json.dumps({"text": text}) + "\n{}\n")
        (tmp_path / name / "a.doc").write_text("x")
    recipe = DataRecipe(
        sources=[{"path": str(tmp_path / "train")}],
        validation=[{"path": str(tmp_path / "held")}],
        cache=tmp_path / "cache",
        length=4,
    )
    for _ in range(2):
        caplog.clear()
        summary = load_corpus(recipe, tiny_tokenizer()).summary()
        assert summary["dropped"] == {"duplicates": 0, "held out": 0, "no text": 2}
        assert {path.rsplit("/", 2)[-2:][0] for path in summary["files_not_read"]} == {"train", "held"}
        said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert sum("1 of 2 files is not read: a.doc" in line for line in said) == 2
        assert any("without text" in line for line in said)
