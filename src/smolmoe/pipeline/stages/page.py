"""One page on what the stages before it wrote."""

from __future__ import annotations

from pathlib import Path

from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Row, Stage, Values
from smolmoe.recipe.page import PageRecipe

FILE = "index.html"


def run(recipe: PageRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.reports.run import report as write_page

    report("Writing the page", 0, 0)
    page = folder / FILE
    write_page(folder.parent, page, overwrite=True)
    return {"page": str(page)}


def row(result: Values, folder: Path) -> Row:
    return Row(found=str(folder / FILE))


STAGE = Stage(PageRecipe, run, row, writes=lambda: (FILE,))
