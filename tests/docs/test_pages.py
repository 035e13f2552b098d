"""The pages as a whole: everything is linked, links lead somewhere, figures are those of committed results."""

from __future__ import annotations

import re
import unicodedata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of

DOCS = ROOT / "docs"
SITE = ROOT / "scripts" / "site_hooks.py"
# Pages that quote figures -> where each of them has to stand.
QUOTING = {
    "how-to/initialisers.md": ("docs/reference/results.md", "docs/explanation/boundary.md"),
    "explanation/routers.md": ("docs/reference/results.md",),
    "how-to/cost.md": ("docs/reference/results.md",),
}


def test_the_navigation_names_every_page() -> None:
    """Every page of docs/ and every page that scripts/site_hooks.py adds, once, and nothing else."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    added = re.findall(r'^    "[^"]+": "([^"]+\.md)",$', SITE.read_text(encoding="utf-8"), re.MULTILINE)
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(_targets(nav)) == sorted(pages + added)


def _targets(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [target for part in parts for target in _targets(part)]


def test_the_index_links_every_page_and_notebook() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)", index)}
    missing = {*DOCS.rglob("*.md"), *(ROOT / "examples").glob("*.ipynb")} - linked - {DOCS / "index.md"}
    assert not missing, f"docs/index.md does not link {sorted(path.name for path in missing)}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks/README.md"], ids=lambda page: page.stem)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    """On GitHub and on the site: an anchor is the same in both ways to make one of a heading."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)", prose):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        if anchor:
            assert anchor[1:] in _anchors(path), f"{target}{anchor}"


def _anchors(page: Path) -> set[str]:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    github, site = set(), set()
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        github.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
        ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        site.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip()))
    return github & site


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
    index = (DOCS / "reference" / "papers.md").read_text(encoding="utf-8")
    cited: set[str] = set()
    for path in [*(ROOT / "src").rglob("*.py"), *DOCS.rglob("*.md"), ROOT / "README.md"]:
        cited |= set(re.findall(r"(?:arXiv |arxiv\.org/abs/)(\d{4}\.\d{5})", path.read_text(encoding="utf-8")))
    listed = re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", index)
    assert sorted(listed) == sorted(cited)
    for file in re.findall(r"`([\w/]+\.py)`", index):
        assert (ROOT / "src" / "smolmoe" / file).exists() or (ROOT / file).exists(), file


def test_the_page_of_environment_variables_names_every_one() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    named = {name for path in files for name in re.findall(r"\bSMOLMOE_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert {name for name in named if not name.endswith("_")} == set(re.findall(r"\bSMOLMOE_[A-Z_]+", page))


def test_the_architecture_page_has_todays_order_and_files() -> None:
    spec = spec_from_file_location("package_order", ROOT / "scripts" / "package_order.py")
    assert spec is not None
    assert spec.loader is not None
    order = module_from_spec(spec)
    spec.loader.exec_module(order)
    page = order.PAGE.read_text(encoding="utf-8")
    assert page == order.listed(order.order(), page), "run `make docs`"
    assert order.PICTURE.read_text(encoding="utf-8") == order.picture(order.order()), "run `make docs`"
    named = set(re.findall(r"`(\w+/[\w/]+\.py)`", page))
    for file in (file for file in named if "NAME" not in file and "FUNCTION" not in file):
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
