"""The loss across a conversion of a pipeline without a `report` stage: from the models that its runs began with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.evaluation.compare.text import nearby
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.boundary import Boundary
from smolmoe.reports.figures import Points
from smolmoe.reports.kinship import Kinship

if TYPE_CHECKING:
    from smolmoe.reports.overview import Training


def derived_boundaries(
    models: Sequence[tuple[str, ModelFacts]], trainings: Sequence[Training], kin: Kinship, known: Sequence[Boundary]
) -> list[Boundary]:
    """A boundary for each converted model that runs began with, unless a known one shows them.

    Args:
        known: boundaries that `report` stages recorded.
    """
    shown = {run.resolve() for boundary in known for run in boundary.runs}
    found = []
    for name, model in models:
        chain = list(_chain(model.folder, trainings)) if model.stage == "upcycle" else []
        if not chain or any(run.folder.resolve() in shown for run in chain):
            continue
        before = next((run for run in trainings if _is_source(run, model.folder, kin)), None)
        onward = [] if before is None else [run for run in _chain(before.folder, trainings) if run not in chain]
        kept = [run for run in [*chain, *onward] if kin.why_apart(chain[0].folder, run.folder) is None]
        if before is not None and (not before.summary or kin.why_apart(chain[0].folder, before.folder) is not None):
            before = None
        if kept and all(run.summary for run in kept):
            found.append(_boundary(name, model.folder, before, kept))
    return found


def _chain(start: Path, trainings: Sequence[Training]) -> Iterator[Training]:
    """The runs that began with a model, and those that began with these runs' models."""
    for run in trainings:
        if _begins_with(run) == _model_of(start):
            yield run
            yield from _chain(run.folder, trainings)


def _model_of(folder: Path) -> Path:
    """A model's folder; of a run, its `model`."""
    place = folder.resolve()
    return place / "model" if (place / "run.json").is_file() else place


def _begins_with(run: Training) -> Path | None:
    path = (run.recipe.get("model") or {}).get("path")
    place = None if path is None else nearby(str(path), run.folder.resolve())
    return None if place is None or not place.is_dir() else _model_of(place)


def _is_source(run: Training, model: Path, kin: Kinship) -> bool:
    folder = _model_of(run.folder)
    return (folder / "config.json").is_file() and folder != model.resolve() and kin.is_made_of(model, folder)


def _boundary(name: str, folder: Path, before: Training | None, runs: Sequence[Training]) -> Boundary:
    at = float(before.summary["tokens"]) if before is not None else 0.0
    known = [_model_of(folder), *([] if before is None else [_model_of(before.folder)])]
    tokens, flops = dict.fromkeys(known, at), dict.fromkeys(known, 0.0)  # at the start from each model
    curves: dict[str, Points] = {} if before is None else {before.label: _curve(before, 0.0, before.summary["tokens"])}
    rows: dict[str, dict[str, Any]] = {} if before is None else {before.label: _row(before)}
    by_flops: dict[str, Points] = {}
    for run in runs:
        start, end = _begins_with(run) or folder, _model_of(run.folder)
        spent = run.summary.get("flops") or 0.0
        curves[run.label], rows[run.label] = _curve(run, tokens[start], run.summary["tokens"]), _row(run)
        by_flops |= {run.label: _curve(run, flops[start], spent)} if spent else {}
        tokens[end], flops[end] = tokens[start] + run.summary["tokens"], flops[start] + spent
    held = runs[0].summary["held_out"]
    parts = [*([] if before is None else [before]), *runs]
    return Boundary(
        label=name,
        folder=folder.parent,
        runs=[run.folder for run in parts],
        curves=curves,
        at=at,
        rows=rows,
        before=None if before is None else before.label,
        reference=None,
        documents=held["documents"],
        tokens=held["tokens"],
        by_flops=by_flops,
    )


def _curve(run: Training, start: float, spent: float) -> Points:
    """Held-out losses over what the run spent, of tokens or FLOPs, after `start`."""
    points = run.history.points("held_out", "loss")
    last = points[-1][0] if points else 1
    return [(start + spent * step / (last or 1), loss) for step, loss in points]


def _row(run: Training) -> dict[str, Any]:
    known = {key: run.summary[key] for key in ("tokens", "flops", "parameters") if key in run.summary}
    return known | {"final": run.summary["held_out"]["loss"]}
