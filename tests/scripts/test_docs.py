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


def test_the_tables_are_those_of_today(docs: ModuleType) -> None:
    pages = {path: text for path, text in docs.pages().items() if path.name != "cli.md"}
    generated = {"README.md", "docs/reference/families.md", "docs/reference/api.md"}
    expected = generated | {f"docs/{name}" for name in docs.KEYS}
    assert {path.relative_to(ROOT).as_posix() for path in pages} == expected
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run `make docs`"


def test_the_cli_page_names_every_command_and_option_of_today(docs: ModuleType) -> None:
    # Names only: how a help text is laid out is the business of the installed version of typer.
    def named(page: str) -> list[str]:
        return sorted(set(re.findall(r"^## smolmoe.*$|--[a-z][a-z-]+", page, re.MULTILINE)))

    today = docs.cli_page()
    assert "--drop-ratio" in named(today)
    assert {"## smolmoe recipes", "## smolmoe recipes copy"} <= set(named(today))
    assert named((ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")) == named(today), (
        "run `make docs`"
    )


def test_the_recipe_page_names_every_key_and_preset(docs: ModuleType) -> None:
    from smolmoe.data.presets import PRESETS
    from smolmoe.recipe import TrainRecipe

    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    for key, field in TrainRecipe.model_fields.items():
        section = docs._section_of(field.annotation)
        for name in [f"{key}.{inner}" for inner in section.model_fields] if section else [key]:
            assert f"| `{name}` |" in page, name
    for preset in PRESETS:
        assert f"| `{preset}` |" in page
    with pytest.raises(SystemExit, match="no markers for keys of run"):
        docs.guide("reference/recipe.md", page.replace("<!-- /keys of run -->", ""))


def test_the_project_text_names_only_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"make ([a-z-]+)`", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= targets, f"{page} names {sorted(named - targets)}"
