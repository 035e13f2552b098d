"""The embedded corpus: what is held out is not met in training, and the same request gives the same text."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import textwrap

import pytest

from smolmoe.data import embedded
from smolmoe.data.embedded import DOMAINS, embedded_corpus, is_held_out, split_docstrings
from smolmoe.errors import DataError


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus(megabytes=1.5)


def long_paragraphs(text: str) -> set[str]:
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return {part for part in parts if len(part) >= embedded.LONG_PARAGRAPH}


def test_no_held_out_document_is_trained_on(corpus):
    train = [document.text for document in corpus.train]
    held_out = [document.text for document in corpus.validation]
    assert not set(train) & set(held_out)
    assert len(set(train)) + len(set(held_out)) == len(train) + len(held_out)
    assert all(is_held_out(text, 0.06) for text in held_out)
    assert not any(is_held_out(text, 0.06) for text in train)


def test_no_long_paragraph_of_held_out_prose_is_trained_on(corpus):
    prose = [document for document in corpus.validation if document.domain == "prose"]
    trained = "\n".join(" ".join(document.text.split()) for document in corpus.train)
    paragraphs = {paragraph for document in prose for paragraph in long_paragraphs(document.text)}
    assert len(paragraphs) > 20
    assert [paragraph for paragraph in paragraphs if paragraph in trained] == []


def test_every_domain_is_on_both_sides_in_its_share(corpus):
    for documents in (corpus.train, corpus.validation):
        assert {document.domain for document in documents} == set(DOMAINS)
    sizes = {d: sum(len(x.text) for x in corpus.train + corpus.validation if x.domain == d) for d in DOMAINS}
    for domain, share in embedded.SHARES.items():
        assert 0.9 * share < sizes[domain] / 1.5e6 < 1.1 * share, sizes
    assert sum(len(x.text) for x in corpus.validation) < 0.15 * sum(sizes.values())


def test_same_request_same_text(corpus):
    assert embedded_corpus(megabytes=1.5) == corpus
    code = "from smolmoe.data.embedded import *; import hashlib; c = embedded_corpus(megabytes=0.3);"
    code += "print(hashlib.sha256(''.join(d.text for d in c.train).encode()).hexdigest())"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1  # also across processes, whose string hashes differ


def test_the_side_of_a_document_does_not_depend_on_the_request(corpus):
    other = embedded_corpus(megabytes=1.0, seed=1)
    assert {document.text for document in other.train} != {document.text for document in corpus.train}
    assert not {document.text for document in other.train} & {document.text for document in corpus.validation}
    assert not {document.text for document in other.validation} & {document.text for document in corpus.train}


def test_code_is_python_without_long_docstrings(corpus):
    code = [document for document in corpus.train if document.domain == "code"]
    for document in code:
        nodes = [n for n in ast.walk(ast.parse(document.text)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        docstrings = [ast.get_docstring(node) or "" for node in nodes]
        assert max(map(len, docstrings), default=0) < embedded.LONG_DOCSTRING
        assert embedded.CODE_CHARACTERS.start <= len(document.text) < embedded.CODE_CHARACTERS.stop


LONG = "word " * 60


@pytest.mark.parametrize(
    ("source", "left"),
    [
        (f'def f(x):\n    """{LONG}\n\n    more\n    """\n    return x\n', "def f(x):\n    return x\n"),
        (f'def f():\n    """{LONG}"""\n', "def f():\n    pass\n"),
        (f'x = 1\n\f\ndef f(y):\n    """{LONG}"""\n    return y\n', "x = 1\n\f\ndef f(y):\n    return y\n"),
        (f'class A: "{LONG}"\n', "class A: pass\n"),
        (f'class A: "{LONG}"; x = 1\n', "class A: x = 1\n"),
        (f'def f():\n    r"""{LONG}"""  # why\n    return 1\n', "def f():\n    # why\n    return 1\n"),
        (f'"""{LONG}"""\nimport os\n', "import os\n"),
        ('def f():\n    """Short."""\n', 'def f():\n    """Short."""\n'),
        (f'def é(): "{LONG}"; return "ü"\n', 'def é(): return "ü"\n'),
    ],
)
def test_long_docstrings_leave_the_code(source, left):
    code, docstrings = split_docstrings(source)
    assert code == left
    assert len(docstrings) == (0 if "Short" in source else 1)
    ast.parse(code)


def test_overlapping_topics_are_taken_once():
    prose = embedded._Prose(10**6)
    chapter, section = "A long enough first paragraph. " * 5, "Another paragraph, of a section. " * 5
    prose.add(f"{chapter}\n\n{section}")
    prose.add(f"Other words.\n\n{textwrap.fill(section)}")
    prose.add("too short to be worth it")
    prose.add(section.replace("Another", "A third"))
    assert [document.text[:5] for document in prose.documents] == ["A lon", "A thi"]


def test_without_the_language_reference(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with caplog.at_level(logging.INFO):
        corpus = embedded_corpus(megabytes=0.3)
    assert "pydoc_data.topics" in caplog.text
    assert any(document.domain == "prose" for document in corpus.train)


def test_without_the_standard_library(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="not include its standard library's sources"):
        embedded_corpus(megabytes=0.3)
