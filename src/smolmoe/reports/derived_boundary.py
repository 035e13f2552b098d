"""The loss across a conversion of a pipeline without a `report` stage: from the models that its runs began with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.provenance import read_provenance
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.boundary import Boundary
from smolmoe.reports.figures import Points
from smolmoe.reports.kinship import NO_KIN, Kinship

if TYPE_CHECKING:
    from smolmoe.reports.overview import Training

_COMPARABLE = (None, NO_KIN)  # the hashes of the models are the record of their kinship


def derived_boundaries(
    models: Sequence[tuple[str, ModelFacts]], trainings: Sequence[Training], kin: Kinship, known: Sequence[Boundary]
) -> list[Boundary]:
    """A boundary for each converted model that runs began with, unless a known one shows them.

    Args:
        known: boundaries that `report` stages recorded.
    """
    shown = {run.resolve() for boundary in known for run in boundary.runs}
    runs = [_Run.of(training) for training in trainings if training.summary.get("held_out")]
    found = []
    for name, model in models:
        if model.stage != "upcycle":
            continue
        sources = model.provenance.get("sources") or {}
        dense = str((sources.get("base") or {}).get("sha256"))
        moe = fingerprint(open_checkpoint(model.folder))
        before = next((run for run in runs if run.end == dense), None)
        after = [*_chain(moe, runs), *(run for run in _chain(dense, runs) if run is not before)]
        after = [run for run in after if kin.why_apart(after[0].folder, run.folder) in _COMPARABLE]
        if before is not None and after and kin.why_apart(after[0].folder, before.folder) not in _COMPARABLE:
            before = None
        if after and not any(run.folder.resolve() in shown for run in after):
            found.append(_boundary(name, model.folder.parent, (dense, moe), before, after))
    return found


@dataclass(frozen=True)
class _Run:
    """A finished training, with the hashes of the models that it began with and ended with."""

    training: Training
    start: str | None
    end: str

    @classmethod
    def of(cls, training: Training) -> _Run:
        model = training.folder / "model"
        if not (model / "config.json").is_file():
            return cls(training, None, "")
        source = read_provenance(model).get("source") or {}
        return cls(training, source.get("sha256"), fingerprint(open_checkpoint(model)))

    @property
    def folder(self) -> Path:
        return self.training.folder

    @property
    def label(self) -> str:
        return self.training.label

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.training.summary


def _chain(start: str, runs: Sequence[_Run]) -> Iterator[_Run]:
    """The runs that began with a model, and those that began with these runs' models."""
    for run in runs:
        if run.start == start:
            yield run
            yield from _chain(run.end, runs)


def _boundary(name: str, folder: Path, begin: tuple[str, str], before: _Run | None, runs: Sequence[_Run]) -> Boundary:
    """The boundary; `begin` has the hashes of the dense model and of the MoE."""
    at = 0.0 if before is None else float(before.summary["tokens"])
    tokens, flops = dict.fromkeys(begin, at), dict.fromkeys(begin, 0.0)  # at the start from each model
    curves: dict[str, Points] = {} if before is None else {before.label: _curve(before, 0.0, at)}
    rows: dict[str, dict[str, Any]] = {} if before is None else {before.label: _row(before)}
    by_flops: dict[str, Points] = {}
    for run in runs:
        start, spent = str(run.start), run.summary.get("flops") or 0.0
        curves[run.label], rows[run.label] = _curve(run, tokens[start], run.summary["tokens"]), _row(run)
        by_flops |= {run.label: _curve(run, flops[start], spent)} if spent else {}
        tokens[run.end], flops[run.end] = tokens[start] + run.summary["tokens"], flops[start] + spent
    held = runs[0].summary["held_out"]
    return Boundary(
        label=name,
        folder=folder,
        runs=[run.folder for run in ([] if before is None else [before]) + list(runs)],
        curves=curves,
        at=at,
        rows=rows,
        before=None if before is None else before.label,
        reference=None,
        documents=held["documents"],
        tokens=held["tokens"],
        by_flops=by_flops,
    )


def _curve(run: _Run, start: float, spent: float) -> Points:
    """Held-out losses over what the run spent, of tokens or FLOPs, after `start`."""
    points = run.training.history.points("held_out", "loss")
    last = points[-1][0] if points else 1
    return [(start + spent * step / (last or 1), loss) for step, loss in points]


def _row(run: _Run) -> dict[str, Any]:
    known = {key: run.summary[key] for key in ("tokens", "flops", "parameters") if key in run.summary}
    return known | {"final": run.summary["held_out"]["loss"]}
