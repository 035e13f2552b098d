"""The history of a checkpoint, from the records next to it and next to its ancestors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.json_text import read_json
from smolmoe.core.provenance import read_provenance
from smolmoe.errors import SmolmoeError
from smolmoe.evaluation.compare.text import RUN, nearby
from smolmoe.recipe.data import DataRecipe
from smolmoe.results.comparison import Training

SUMMARY = "summary.json"
MODEL = "model"
CHECKPOINT = "checkpoint-"

TokenCost = Callable[[Path, int], float]  # training FLOPs per token of the model in a folder, for a sequence length


@dataclass(frozen=True)
class TrainingText:
    """The training text of an ancestor.

    Attributes:
        label: its name.
        recipe: None if it is recorded, but not as a corpus.
        near: the folder of that ancestor; paths of the recipe may be relative to one above it.
    """

    label: str
    recipe: DataRecipe | None
    near: Path


@dataclass(frozen=True)
class Lineage:
    """A checkpoint and its recorded ancestors, without those of the base.

    Attributes:
        folders: of the checkpoints, this one first.
        tokens, flops: of the training of all of them; None if not on record.
        texts: their training texts; None if not on record.
        reaches_base: whether the base is an ancestor (or this checkpoint).
        seed: of this checkpoint.
        hashes: of this checkpoint and of all its recorded sources, found or not.
    """

    folders: tuple[Path, ...]
    tokens: int | None
    flops: float | None
    texts: tuple[TrainingText, ...] | None
    reaches_base: bool
    seed: int | None
    hashes: frozenset[str]

    def training(self, base: str) -> Training | None:
        """The tokens and FLOPs, if they are on record."""
        if not self.tokens or self.flops is None:
            return None
        stages = tuple(_name(folder) for folder in reversed(self.folders))
        return Training(self.tokens, self.flops, base if self.reaches_base else None, stages)


@dataclass(frozen=True)
class _Stage:
    """The record of one folder: its training, and the (name, sha256) of its sources."""

    tokens: int | None
    flops: float | None
    text: TrainingText | None
    sources: tuple[tuple[str, str | None], ...]


def read_lineage(folder: Path, sha256: str, base: str | None, token_cost: TokenCost) -> Lineage:
    """Follow a checkpoint's records back to the base, or as far as they go.

    An ancestor counts only if the files found have the recorded hash.

    Args:
        sha256: of the checkpoint (`fingerprint`).
        base: the base's hash; None for the base itself.

    Raises:
        CheckpointError: a smolmoe.json is not readable.
    """
    seed = read_provenance(folder).get("seed")
    if sha256 == base:
        return Lineage((folder,), None, None, None, True, seed, frozenset({sha256}))
    hashes = {sha256}
    stages: list[tuple[Path, _Stage]] = []
    reaches_base = False
    waiting = [(folder, _read_stage(folder, token_cost))]
    while waiting:
        here, stage = waiting.pop()
        stages.append((here, stage))
        for name, recorded in stage.sources:
            hashes |= {recorded} if recorded else set()
            if recorded is not None and recorded == base:
                reaches_base = True
            elif (found := _ancestor(name, recorded, here)) is not None:
                waiting.append((found, _read_stage(found, token_cost)))
    spent = [(stage.tokens, stage.flops) for _, stage in stages]
    tokens = None if any(count is None for count, _ in spent) else sum(count or 0 for count, _ in spent)
    flops = None if any(cost is None for _, cost in spent) else sum(cost or 0.0 for _, cost in spent)
    texts = tuple(stage.text for _, stage in stages if stage.text is not None)
    folders = tuple(here for here, _ in stages)
    return Lineage(folders, tokens, flops, texts or None, reaches_base, seed, frozenset(hashes))


def ancestry(folder: Path, sha256: str) -> frozenset[str]:
    """The hashes of a checkpoint and of all its recorded sources.

    Two checkpoints are comparable if these sets overlap: one was made from the other, or both from the same source.

    Args:
        sha256: of the checkpoint (`fingerprint`), or of its future source.

    Raises:
        CheckpointError: a smolmoe.json is not readable.
    """
    return read_lineage(folder, sha256, None, lambda folder, length: 0.0).hashes


def _ancestor(name: str, recorded: str | None, folder: Path) -> Path | None:
    found = nearby(name, folder)
    if recorded is None or found is None or not found.is_dir():
        return None
    try:
        return found.resolve() if fingerprint(open_checkpoint(found)) == recorded else None
    except SmolmoeError:  # it is no longer a model
        return None


def _read_stage(folder: Path, token_cost: TokenCost) -> _Stage:
    record = read_provenance(folder)
    stage = str(record.get("stage", ""))
    if stage in ("train", "align"):
        return _trained(folder, record, token_cost)
    sources = (record.get("sources") or {}).values()
    made_of = tuple((source["name"], source.get("sha256")) for source in sources)
    return _Stage(0 if made_of else None, 0.0 if made_of else None, None, made_of)


def _trained(folder: Path, record: Mapping[str, Any], token_cost: TokenCost) -> _Stage:
    request, source = record.get("request") or {}, record.get("source") or {}
    path = (request.get("model") or {}).get("path")
    tokens = flops = None
    run = next((above for above in (folder.parent, folder.parent.parent) if (above / RUN).is_file()), None)
    if run is not None:
        tokens, flops = _spent(folder, run, token_cost)
    sources = () if path is None else ((path, source.get("sha256")),)
    return _Stage(tokens, flops, _text(folder, request.get("data")), sources)


def _spent(folder: Path, run: Path, token_cost: TokenCost) -> tuple[int | None, float | None]:
    """Tokens and FLOPs of a run up to this checkpoint."""
    if folder.name == MODEL and (summary := record_of(run / SUMMARY)):
        return summary.get("tokens"), summary.get("flops")
    asked, step = record_of(run / RUN), folder.name.removeprefix(CHECKPOINT)
    length = asked.get("recipe", {}).get("data", {}).get("length")
    if not step.isdecimal() or length is None or "blocks_a_step" not in asked:
        return None, None
    tokens = int(step) * asked["blocks_a_step"] * length
    return tokens, tokens * token_cost(folder, length)


def _text(folder: Path, data: object) -> TrainingText:
    try:
        recipe = DataRecipe.model_validate(data)
    except ValidationError:  # of an alignment: pairs, or chats
        return TrainingText(f"the data of {_name(folder)}", None, folder)
    return TrainingText(_name(folder), recipe, folder)


def record_of(path: Path) -> dict[str, Any]:
    """A record; empty if it is missing or unreadable."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(folder: Path) -> str:
    """The name of a checkpoint: a run's model is named after the run."""
    inner = folder.name == MODEL or folder.name.startswith(CHECKPOINT)
    return "/".join(folder.parts[-2:]) if inner else folder.name
