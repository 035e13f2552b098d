"""The generated parts of the documentation are those of today's code: `make docs` writes them."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = spec_from_file_location("smolmoe_docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_families_tables_are_those_of_today(docs: ModuleType) -> None:
    pages = {path: text for path, text in docs.pages().items() if path.name != "cli.md"}
    assert {path.name for path in pages} == {"README.md", "families.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make docs`"


def test_the_cli_page_names_every_command_and_option_of_today(docs: ModuleType) -> None:
    # Names only: how a help text is laid out is the business of the installed version of typer.
    def named(page: str) -> list[str]:
        return sorted(set(re.findall(r"^## smolmoe.*$|--[a-z][a-z-]+", page, re.MULTILINE)))

    today = docs.cli_page()
    assert "--drop-ratio" in named(today)
    assert named((ROOT / "docs" / "cli.md").read_text(encoding="utf-8")) == named(today), "run `make docs`"


def test_the_project_text_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"make ([a-z-]+)`", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= targets, f"{page} names {sorted(named - targets)}"
