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


def test_the_readme_has_the_families_tables_of_today(docs: ModuleType) -> None:
    assert docs.README.read_text(encoding="utf-8") == docs.readme(), "run `make docs`"


def test_the_cli_page_names_every_command_and_option_of_today(docs: ModuleType) -> None:
    # Names only: how a help text is laid out is the business of the installed version of typer.
    def named(page: str) -> list[str]:
        return sorted(set(re.findall(r"^## smolmoe.*$|--[a-z][a-z-]+", page, re.MULTILINE)))

    assert named(docs.CLI_PAGE.read_text(encoding="utf-8")) == named(docs.cli_page()), "run `make docs`"
    assert "--drop-ratio" in named(docs.cli_page())


def test_the_project_text_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"make ([a-z-]+)`", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= targets, f"{page} names {sorted(named - targets)}"
