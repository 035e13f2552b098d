"""The pages as a whole: everything is linked, links lead somewhere, figures are those of committed results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of

DOCS = ROOT / "docs"
# Pages that quote figures -> where each of them has to stand.
QUOTING = {
    "initialisers.md": ("docs/results.md", "docs/boundary.md"),
    "routers.md": ("docs/results.md",),
    "cost.md": ("docs/results.md",),
}


def test_the_index_links_every_page_and_notebook() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    missing = {*DOCS.glob("*.md"), *(ROOT / "examples").glob("*.ipynb")} - linked - {DOCS / "index.md"}
    assert not missing, f"docs/index.md does not link {sorted(path.name for path in missing)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", QUOTING)
def test_quoted_figures_are_results(name: str) -> None:
    """Losses and differences, three decimals or more, stand in a page of results to those decimals."""
    text = re.sub(r"\[[\d.]+\]\(http[^)]*\)|```.*?```", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    known = " ".join((ROOT / page).read_text(encoding="utf-8") for page in QUOTING[name])
    figures = set(re.findall(r"(?<![\d.])\d\.\d{3,}\b", text))
    assert figures
    results = set(re.findall(r"(?<![\d.])\d*\.\d{3,}\b", known))
    derived = {f"{abs(float(a) - float(b)):.4f}" for a, b in _DERIVED}
    unknown = {figure for figure in figures - results - derived if not any(r.startswith(figure) for r in results)}
    assert not unknown, f"not in {QUOTING[name]}: {sorted(unknown)}"


def test_the_paper_index_has_every_paper_and_no_file_that_is_not_there() -> None:
    index = (DOCS / "papers.md").read_text(encoding="utf-8")
    cited: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *DOCS.glob("*.md"), ROOT / "README.md"]:
        cited |= set(re.findall(r"(?:arXiv |arxiv\.org/abs/)(\d{4}\.\d{5})", path.read_text(encoding="utf-8")))
    listed = re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", index)
    assert sorted(listed) == sorted(cited)
    for file in re.findall(r"`([\w/]+\.py)`", index):
        assert (ROOT / "src" / "smolmoe" / file).exists() or (ROOT / file).exists(), file


# Differences that a page makes of two results.
_DERIVED = (("4.1120", "4.1115"), ("4.1137", "4.1120"))


def test_a_wish_of_a_page_is_of_a_known_kind(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- run: reduced a.b=1 c=2; slow -->\n```bash\nls\n```\n\ntext\n\n```\nls\n```\n")
    first, second = blocks_of(page)
    assert first == Block(page, 2, "bash", "ls\n", {"reduced": "a.b=1 c=2", "slow": ""})
    assert first.changes == ["a.b=1", "c=2"]
    assert second.run == {}
    page.write_text("<!-- run: never -->\n```\nls\n```\n")
    with pytest.raises(ValueError, match="never"):
        blocks_of(page)
