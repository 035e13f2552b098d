"""Text of this Python installation: code, prose and mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.progress import Progress
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.recipe.corpus import CorpusRecipe

if TYPE_CHECKING:
    from smolmoe.data.text import Document

TRAIN, VALIDATION = "train", "validation"


def run(recipe: CorpusRecipe, folder: Path, report: Progress) -> Values:
    from smolmoe.data.embedded import embedded_corpus
    from smolmoe.data.text import write_documents

    report("Collecting text", 0, 0)
    corpus = embedded_corpus(seed=recipe.seed, megabytes=recipe.megabytes, validation=recipe.validation)
    sides = {TRAIN: corpus.train, VALIDATION: corpus.validation}
    with whole_or_nothing(folder, overwrite=True) as partial:
        for side, documents in sides.items():
            write_documents(partial / f"{side}.jsonl", documents)
    return {side: _by_domain(documents) for side, documents in sides.items()}


def _by_domain(documents: list[Document]) -> Values:
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.domain or "", []).append(document.text)
    return {name: {"documents": len(own), "characters": sum(map(len, own))} for name, own in texts.items()}


def dry_run(recipe: CorpusRecipe, folder: Path) -> Foreseen:
    folder.mkdir()
    for side in (TRAIN, VALIDATION):
        (folder / f"{side}.jsonl").touch()
    return Foreseen()


def row(result: Values, folder: Path) -> Row:
    counts = {side: sum(own["documents"] for own in result[side].values()) for side in (TRAIN, VALIDATION)}
    return Row(found=f"{counts[TRAIN]:,} documents, {counts[VALIDATION]:,} held out")


STAGE = Stage(
    CorpusRecipe,
    run,
    row,
    dry_run,
    writes=lambda: ("train.jsonl", "validation.jsonl"),
    leaves={"": ""},
    origin=lambda recipe: "this Python",
)
