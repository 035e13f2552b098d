"""The model card of every checkpoint that is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import write_text
from smolmoe.core.json_text import read_rows
from smolmoe.core.provenance import record_measured
from smolmoe.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from smolmoe.results.comparison import Comparison

CARD = "README.md"
# Entries of a training's summary that the model's smolmoe.json keeps.
_KEPT = ("steps", "tokens", "flops", "parameters", "held_out")


def write_card(folder: Path, *, name: str | None = None) -> Path:
    """Write the model card of a checkpoint that smolmoe made, from its own files; returns its path.

    Args:
        folder: with config.json, weights and smolmoe.json.
        name: that the snippets load.  [default: a path with the folder's name]

    Raises:
        SourceError, CheckpointError: not a checkpoint.
    """
    path = folder / CARD
    write_text(path, card_text(folder, name=name))
    return path


def card_text(folder: Path, *, name: str | None = None) -> str:
    """The text of `write_card`."""
    from smolmoe.hub.card import card
    from smolmoe.hub.model_facts import ModelFacts

    facts = ModelFacts.read(folder)
    return card(facts, name=name or f"path/to/{facts.name}", comparison=_compared(folder))


def finish_model(folder: Path, summary: Mapping[str, Any]) -> None:
    """Record a trained model's measurements in its smolmoe.json, and write its card.

    Args:
        folder: the run's `model`, next to its metrics.
        summary: of the run.
    """
    measured = {key: summary[key] for key in _KEPT if key in summary}
    start = _first_held_out(folder.parent / "metrics.jsonl")
    record_measured(folder, measured | ({"start": start} if start else {}))
    write_card(folder)


def _first_held_out(metrics: Path) -> dict[str, Any] | None:
    """The held-out losses before the first step."""
    if not metrics.is_file():
        return None
    rows = (row for row in read_rows(metrics) if row["kind"] == "held_out" and row.get("step") == 0)
    first = next(rows, None)
    return None if first is None else {key: first[key] for key in ("loss", "by_domain") if key in first}


def _compared(folder: Path) -> list[str]:
    """The entry for a checkpoint in a nearby `compare.json`: in the folders above it, or one next to them."""
    from smolmoe.results.comparison import Comparison

    place = folder.resolve()
    for above in list(place.parents)[:2]:
        for file in sorted({above / "compare.json", *above.glob("*/compare.json")}):
            try:
                found = Comparison.read(file) if file.is_file() else None
            except (CheckpointError, DataError):  # an unrelated file
                continue
            if found and _is_of(found, place):
                return list(found.verdict)
    return []


def _is_of(found: Comparison, place: Path) -> bool:
    """Whether the comparison has this checkpoint in its current state: by its path and its hash."""
    from smolmoe.core.checkpoint import fingerprint, open_checkpoint

    checkpoints = [checkpoint for model in found.models for checkpoint in model.checkpoints]
    hashes = {one.sha256 for one in checkpoints if Path(one.path).resolve() in (place, place.parent)}
    return bool(hashes) and fingerprint(open_checkpoint(place)) in hashes
