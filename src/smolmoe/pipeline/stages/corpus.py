"""Text in two files, training and held out: of sources, or of this Python installation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from smolmoe.core.folders import whole_or_nothing
from smolmoe.core.progress import Progress
from smolmoe.data.text import Document, to_row
from smolmoe.pipeline.stage import Foreseen, Row, Stage, Values
from smolmoe.recipe.corpus import CorpusRecipe
from smolmoe.recipe.data import DataRecipe

SIDES = TRAIN, VALIDATION = "train", "validation"


def run(recipe: CorpusRecipe, folder: Path, report: Progress) -> Values:
    report("Collecting text", 0, 0)
    counts: dict[str, Counter[tuple[str, str]]] = {side: Counter() for side in SIDES}
    with whole_or_nothing(folder, overwrite=True) as partial, ExitStack() as files:
        written = {side: files.enter_context((partial / f"{side}.jsonl").open("w", encoding="utf-8")) for side in SIDES}
        for number, (document, held) in enumerate(_documents(recipe), 1):
            side = VALIDATION if held else TRAIN
            written[side].write(json.dumps(to_row(document), ensure_ascii=False) + "\n")
            counts[side]["documents", document.domain or ""] += 1
            counts[side]["characters", document.domain or ""] += len(document.text)
            report("Collecting text", number, 0)
    return {side: _by_domain(found) for side, found in counts.items()}


def _documents(recipe: CorpusRecipe) -> Iterator[tuple[Document, bool]]:
    """Every document, and whether it is held out."""
    from smolmoe.data.embedded import embedded_corpus
    from smolmoe.data.rows import distinct

    if recipe.sources:
        sides = {"sources": recipe.sources, "validation": recipe.validation_sources, "held_out": recipe.validation}
        yield from distinct(DataRecipe.model_validate(sides))
        return
    corpus = embedded_corpus(seed=recipe.seed, megabytes=recipe.megabytes, validation=recipe.validation)
    yield from ((document, False) for document in corpus.train)
    yield from ((document, True) for document in corpus.validation)


def _by_domain(counts: Counter[tuple[str, str]]) -> Values:
    domains = dict.fromkeys(domain for _, domain in counts)
    return {name: {kind: counts[kind, name] for kind in ("documents", "characters")} for name in domains}


def dry_run(recipe: CorpusRecipe, folder: Path) -> Foreseen:
    from smolmoe.data.sources import look_at

    for source in (*recipe.sources, *recipe.validation_sources):
        look_at(source)
    folder.mkdir()
    for side in SIDES:
        (folder / f"{side}.jsonl").touch()
    return Foreseen()


def row(result: Values, folder: Path) -> Row:
    counts = {side: sum(own["documents"] for own in result[side].values()) for side in SIDES}
    return Row(found=f"{counts[TRAIN]:,} documents, {counts[VALIDATION]:,} held out")


STAGE = Stage(
    CorpusRecipe,
    run,
    row,
    dry_run,
    writes=lambda: ("train.jsonl", "validation.jsonl"),
    leaves={"": ""},
    origin=lambda recipe: ", ".join(str(source.path or source.preset) for source in recipe.sources) or "this Python",
)
