"""The notebooks run from a fresh kernel, and what is stored in them came from such a run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_of(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["specialise", "upcycle"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_whole_and_was_run_in_order(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    cells = code_of(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        ast.parse(cell.source)
        assert not [output for output in cell.outputs if output.output_type == "error"]
        assert not [output for output in cell.outputs if output.get("name") == "stderr"]
    assert path.stat().st_size < 300_000
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert not re.search(r"/home/|/tmp/|/Users/|/root/|/work/", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", "".join(cell.source for cell in book.cells)):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_imports_what_there_is(path: Path) -> None:
    """Every name that it takes from smolmoe exists: a fast look at what the slow test does in full."""
    from importlib import import_module

    for cell in code_of(read(path)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("smolmoe"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "smolmoe":
                import smolmoe

                assert node.attr in smolmoe.__all__, node.attr


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    book = read(path)
    for cell in code_of(book):
        cell.outputs = []
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=None, coalesce_streams=True, resources=where).execute()
    printed = [output for cell in code_of(book) for output in cell.outputs]
    stored = [output for cell in code_of(read(path)) for output in cell.outputs]
    assert [output.output_type for output in printed] == [output.output_type for output in stored]
