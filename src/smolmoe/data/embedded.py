"""A corpus that needs no download: code, prose and mathematics from the user's own Python installation.

- code: the source files of the standard library, without their long docstrings;
- prose: the language reference (`pydoc_data.topics`), by section, and those long docstrings;
- math: generated problems with solutions (`smolmoe.data.word_problems`).

Code and prose never share a text, and no long paragraph of prose occurs in two documents, so that held-out text is not
trained on.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import io
import logging
import os
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smolmoe.data import word_problems
from smolmoe.data.text import Document
from smolmoe.errors import DataError

logger = logging.getLogger(__name__)

DOMAINS = ("code", "prose", "math")
SHARES = {"code": 0.4, "prose": 0.25, "math": 0.35}

# Tests, generated tables, other people's packages and what only some versions or builds of Python have.
SKIPPED_FOLDERS = re.compile(
    r"tests?|idle_test|(site|dist)-packages|lib-dynload|ensurepip|encodings|pydoc_data|lib2to3|distutils|__\w+__"
)
SKIPPED_FILES = re.compile(r"_sysconfigdata|_sysconfig_vars|sitecustomize|this\.py|entities\.py|__main__\.py")
CODE_CHARACTERS = range(400, 40_000)  # a file is one document: none may dominate a split
LONG_DOCSTRING = 200  # characters; shorter ones belong to the code
LONG_PARAGRAPH = 80  # characters; prose that repeats one is a copy

_HEADING = re.compile(r"""^\S.*\n([*=~^"'-])\1{2,}$""", re.MULTILINE)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out; no text is in both."""

    train: list[Document]
    validation: list[Document]


def embedded_corpus(*, seed: int = 0, megabytes: float = 4.5, validation: float = 0.06) -> Corpus:
    """Code, prose and mathematics from this Python installation, split by document.

    The split follows a hash of the document's text alone: a document is on the same side whatever the seed, the size
    and the machine. Exact duplicates are removed.

    Args:
        seed: of the choice of files, the problems, and the order of the documents.
        megabytes: approximate size; an installation has about 4 of code and 1.5 of prose.
        validation: share of held-out documents.

    Raises:
        DataError: this Python has no sources of its standard library.
    """
    budgets = {domain: int(share * megabytes * 1e6) for domain, share in SHARES.items()}
    documents = [
        *_library_documents(seed, budgets["code"], budgets["prose"]),
        *_math_documents(seed, budgets["math"]),
    ]
    documents = list({document.text: document for document in documents}.values())
    random.Random(seed).shuffle(documents)
    return Corpus(
        train=[document for document in documents if not is_held_out(document.text, validation)],
        validation=[document for document in documents if is_held_out(document.text, validation)],
    )


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out `share`: depends only on its text."""
    return _hash(text) < share


def _hash(text: str) -> float:
    """A number in [0, 1) that depends only on `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _library_documents(seed: int, code_budget: int, prose_budget: int) -> list[Document]:
    """Code and prose, each up to its budget in characters."""
    prose = _Prose(prose_budget)
    # At most half, so that a small corpus has both kinds of prose.
    for section in _shuffled(_reference_sections(), seed):
        if prose.characters >= prose_budget // 2:
            break
        prose.add(section)
    code: list[Document] = []
    characters = 0
    for source in _sources(seed):
        try:
            text, docstrings = split_docstrings(source)
        except (SyntaxError, ValueError):  # sources for lib2to3's like, or with null bytes
            continue
        if characters < code_budget and len(text) in CODE_CHARACTERS:
            code.append(Document(text, "code"))
            characters += len(text)
        for docstring in docstrings:
            prose.add(docstring)
        if characters >= code_budget and prose.characters >= prose_budget:
            break
    if not code:
        raise DataError(
            "this Python installation does not include its standard library's sources.",
            field="python",
            value=sys.prefix,
            fix="Use a Python that includes them (python.org, pyenv, conda and Linux distributions do).",
        )
    return code + prose.documents


class _Prose:
    """Collects prose without copies, up to a number of characters."""

    def __init__(self, budget: int):
        self.budget = budget
        self.documents: list[Document] = []
        self.characters = 0
        self._seen: set[str] = set()

    def add(self, text: str) -> None:
        """Take `text` unless the budget is spent or one of its long paragraphs occurred before."""
        text = text.strip()
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        long = {part for part in paragraphs if len(part) >= LONG_PARAGRAPH}
        if not long or self.characters >= self.budget or long & self._seen:
            return
        self._seen |= long
        self.documents.append(Document(text, "prose"))
        self.characters += len(text)


def _reference_sections() -> list[str]:
    """The language reference, one text per section; empty if the distribution lacks it.

    Topics overlap (one may be a section of another); `_Prose` drops repetitions.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except (ImportError, AttributeError):
        logger.info("this Python has no pydoc_data.topics: the prose consists of docstrings only")
        return []
    sections = []
    for name in sorted(topics):
        starts = sorted({0, *(match.start() for match in _HEADING.finditer(topics[name]))})
        sections += [topics[name][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    return sections


def _sources(seed: int) -> Iterator[str]:
    """The standard library's source files in an order that depends on the seed and on their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not SKIPPED_FOLDERS.fullmatch(name)]
        sources = (name for name in files if name.endswith(".py") and not SKIPPED_FILES.search(name))
        names += [Path(folder, name).relative_to(root).as_posix() for name in sources]
    for name in _shuffled(names, seed):
        try:
            yield (root / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def _shuffled(texts: list[str], seed: int) -> list[str]:
    """In an order that hardly changes with one text more or less (another version of Python)."""
    return sorted(texts, key=lambda text: _hash(f"{seed} {text}"))


def split_docstrings(source: str) -> tuple[str, list[str]]:
    """The code without its long docstrings, and those docstrings.

    Raises:
        SyntaxError, ValueError: `source` is not Python.
    """
    lines = list(io.StringIO(source, newline=""))  # Python's lines; `splitlines` also ends them at form feeds
    docstrings: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
            continue
        first = node.body[0]
        if not (
            isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        ):
            continue
        text = inspect.cleandoc(first.value.value)
        if len(text) < LONG_DOCSTRING:
            continue
        docstrings.append(text)
        _blank(lines, first, keep=len(node.body) == 1)
    return "".join(lines).strip() + "\n", docstrings


def _blank(lines: list[str], statement: ast.stmt, *, keep: bool) -> None:
    """Empty the lines of `statement`; with `keep`, put `pass` in its place.

    Other content of its first and last lines (a `class A:` before it, a comment after it) is kept.
    """
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before = lines[first].encode()[: statement.col_offset].decode()
    after = lines[last].encode()[statement.end_col_offset :].decode()
    for index in range(first, last + 1):
        lines[index] = ""
    # On the last line, which may be the first one, too.
    if keep:
        lines[last] = before + "pass" + after
    elif before.strip() or after.strip():
        lines[last] = before + after.lstrip(" ;")


def _math_documents(seed: int, budget: int) -> list[Document]:
    """Worked problems up to a number of characters."""
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    characters = 0
    while characters < budget:
        text = word_problems.worked_problem(rng).text
        if text not in texts:
            texts[text] = None
            characters += len(text)
    return [Document(text, "math") for text in texts]
