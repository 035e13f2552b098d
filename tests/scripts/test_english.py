"""The checker of plain English finds its phrases in prose and strings, and nowhere else; the pages have none."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def english() -> ModuleType:
    spec = spec_from_file_location("smolmoe_english", ROOT / "scripts" / "english.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("The MoE beside the dense model.", 1),
        ("One.\nThe run goes\non with it.", 2),
        ("A loss that is no number.", 1),
        ("12 nats a token", 1),
    ],
)
def test_a_phrase_is_found_in_its_line(english: ModuleType, text: str, line: int) -> None:
    assert [found[0] for found in english.findings(english.prose(text))] == [line]


@pytest.mark.parametrize(
    "text",
    [
        "`beside`",
        "```\nbeside\n```",
        "<!-- step:begin -->\nbeside\n<!-- step:end -->",
        "<!-- keys of run -->\nbeside\n<!-- /keys of run -->",
        "[a](beside.md)",
        "compared with the dense model, per token",
    ],
)
def test_code_links_and_generated_parts_are_not_read(english: ModuleType, text: str) -> None:
    assert not list(english.findings(english.prose(text)))


def test_strings_of_a_file_are_read_and_its_code_is_not(english: ModuleType) -> None:
    source = 'beside = 1\nsaid = """One.\nTwo beside three."""\n# beside\n'
    assert [found[0] for found in english.findings(english.strings(source))] == [3]


def test_the_pages_are_plain(english: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert english.main([]) == 0, capsys.readouterr().out


def test_a_phrase_does_not_run_over_two_strings(english: ModuleType) -> None:
    assert not list(english.findings(english.strings('OPTIONS = ("set", "out")\n')))
    assert list(english.findings(english.strings('"""It set\n    out."""\n')))
