"""Which models and runs are comparable: a page compares only these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.provenance import read_provenance
from smolmoe.errors import SmolmoeError
from smolmoe.evaluation.compare.lineage import ancestry, record_of
from smolmoe.evaluation.compare.text import nearby
from smolmoe.evaluation.held_out import same_text

NO_KIN = "no common ancestor is on record"
OTHER_TEXT = "they were measured on other held-out text"
UNFINISHED = "they have no final held-out loss"


class Kinship:
    """Ancestries of models and runs, read when first needed, because a hash reads all weights of a model."""

    def __init__(self) -> None:
        self._found: dict[Path, frozenset[str]] = {}

    def of(self, folder: Path) -> frozenset[str]:
        """Hashes of a model, or of a run's model, and of all its sources; empty if nothing is on record."""
        place = folder.resolve()
        if place not in self._found:
            try:
                self._found[place] = _of_run(place) if (place / "run.json").is_file() else _of_model(place)
            except SmolmoeError:  # unreadable: not comparable with anything
                self._found[place] = frozenset()
        return self._found[place]

    def together(self, a: Path, b: Path) -> bool:
        """Whether one was made from the other, or both from the same source."""
        return a.resolve() == b.resolve() or bool(self.of(a) & self.of(b))

    def is_made_of(self, model: Path, other: Path) -> bool:
        """Whether `other` is a recorded source of `model`."""
        return fingerprint(open_checkpoint(other)) in self.of(model)

    def why_apart(self, a: Path, b: Path) -> str | None:
        """Why the losses of two runs are not comparable; None if they are."""
        held = [record_of(run / "held_out.json") for run in (a, b)]
        if not all(held):
            return UNFINISHED
        if not same_text(*held):
            return OTHER_TEXT
        return None if self.together(a, b) else NO_KIN

    def groups(self, runs: Sequence[Path], declared: Sequence[Sequence[Path]] = ()) -> list[list[int]]:
        """Places of runs with comparable losses, a list for each set.

        Args:
            declared: runs that a report compares by request; these need only the same text.
        """
        sets: list[list[int]] = []
        for place, run in enumerate(runs):
            joined = [other for other in sets if any(self._side_by_side(run, runs[at], declared) for at in other)]
            sets = [other for other in sets if other not in joined] + [[*(at for one in joined for at in one), place]]
        return sorted((sorted(one) for one in sets), key=lambda one: one[0])

    def _side_by_side(self, a: Path, b: Path, declared: Sequence[Sequence[Path]]) -> bool:
        why = self.why_apart(a, b)
        if why != NO_KIN:
            return why is None
        places = {a.resolve(), b.resolve()}
        return any(places <= {run.resolve() for run in runs} for runs in declared)


def _of_model(folder: Path) -> frozenset[str]:
    return ancestry(folder, fingerprint(open_checkpoint(folder)))


def _of_run(run: Path) -> frozenset[str]:
    """Hashes of its model; for an unfinished run, of the source of its last checkpoint, or of its recipe."""
    if (run / "model" / "config.json").is_file():
        return _of_model(run / "model")
    source: Any = None
    for checkpoint in (run / "checkpoints").glob("*/"):
        source = (read_provenance(checkpoint).get("source") or {}).get("sha256") or source
    path = ((record_of(run / "run.json").get("recipe") or {}).get("model") or {}).get("path")
    folder = None if path is None else nearby(str(path), run)
    found = frozenset() if folder is None or not folder.is_dir() else _of_model(folder)
    return found | ({source} if source else frozenset())
