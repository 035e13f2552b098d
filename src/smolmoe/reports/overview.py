"""The content of folders: models, trainings, probes, boundaries, comparisons, sweeps, benchmarks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from smolmoe.core.provenance import PROVENANCE_FILE, check_schema
from smolmoe.core.run_folder import RECORDS
from smolmoe.errors import DataError
from smolmoe.evaluation.compare.text import nearby
from smolmoe.evaluation.held_out import DocumentLosses
from smolmoe.hub.model_facts import ModelFacts
from smolmoe.reports.boundary import Boundary, is_training, read_boundary
from smolmoe.reports.derived_boundary import derived_boundaries
from smolmoe.reports.kinship import Kinship
from smolmoe.reports.names import Looks
from smolmoe.reports.renaming import under_names
from smolmoe.reports.specialisation_data import Probed, why_not_comparable
from smolmoe.reports.training_curves import History
from smolmoe.results.base import read_plain
from smolmoe.results.bench import BenchResult
from smolmoe.results.comparison import Comparison, ModelResult
from smolmoe.results.files import FILES, read_result
from smolmoe.results.scaling_law import Sweep

DEPTH = 5
_PASSED_OVER = {"checkpoints", "tokenizer", "corpus", "text", "runs", "adapters", RECORDS}
_POINT = re.compile(r"(tokens|trunk)-\d+")  # a training of a sweep, in a folder seed-N


@dataclass(frozen=True)
class Training:
    """One run folder.

    Attributes:
        label: its folder, relative to the named folder.
        folder: its path.
        history: its metrics.
        summary: its final results; empty for an unfinished run.
        recipe: its recipe.
        documents: its final losses per document.
    """

    label: str
    folder: Path
    history: History
    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]
    documents: DocumentLosses | None


@dataclass(frozen=True)
class Probe:
    """A probe of a model, with an earlier one, if any; `label` is unique, `model` is the name of the model."""

    label: str
    model: str
    after: Probed
    before: Probed | None


@dataclass(frozen=True)
class Bench:
    """A benchmark, and the folders of its models that exist here."""

    result: BenchResult
    folders: Sequence[Path]


@dataclass(frozen=True)
class Overview:
    """All that was found, each kind in order of its folders.

    Attributes:
        comparisons: with the names of their folders.
        looks: by name, the same in the whole page.
        kin: which models and runs are comparable.
    """

    folders: Sequence[Path]
    models: Sequence[tuple[str, ModelFacts]]
    trainings: Sequence[Training]
    probes: Sequence[Probe]
    boundaries: Sequence[Boundary]
    comparisons: Sequence[tuple[str, Comparison]]
    sweeps: Sequence[Sweep]
    benches: Sequence[Bench]
    looks: Looks
    kin: Kinship

    @cached_property
    def groups(self) -> list[list[Training]]:
        """Runs with comparable losses: a recorded common ancestor, and the same held-out text."""
        declared = [boundary.runs for boundary in self.boundaries]
        sets = self.kin.groups([run.folder for run in self.trainings], declared)
        return [[self.trainings[place] for place in places] for places in sets]

    @cached_property
    def main(self) -> tuple[str, ModelFacts] | None:
        """The main model of the report: the first converted MoE, else the first model."""
        converted = [pair for pair in self.moes if pair[1].stage == "upcycle"]
        return next(iter(converted or self.moes or self.models), None)

    @cached_property
    def models_it_was_made_of(self) -> list[ModelFacts]:
        """Dense models here that are recorded sources of the main model."""
        if self.main is None or not self.main[1].experts:
            return []
        folder = self.main[1].folder
        return [other for _, other in self.models if not other.experts and self.kin.is_made_of(folder, other.folder)]

    @property
    def moes(self) -> list[tuple[str, ModelFacts]]:
        return [(label, model) for label, model in self.models if model.experts]

    def to_json(self) -> dict[str, Any]:
        """The labels, or the number, of each kind."""
        return {
            "models": [label for label, _ in self.models],
            "trainings": [training.label for training in self.trainings],
            "probes": [probe.label for probe in self.probes],
            "boundaries": [boundary.label for boundary in self.boundaries],
            "comparisons": len(self.comparisons),
            "sweeps": len(self.sweeps),
            "benches": len(self.benches),
        }


def find(paths: Sequence[Path]) -> Overview:
    """Read folders, at most five levels deep, and result files.

    Raises:
        DataError: a path does not exist, or holds nothing from smolmoe.
        CheckpointError: a file has an unsupported schema.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError("there is no such folder.", field="run", value=str(path))
        here = [path] if path.is_file() else list(_folders(path))
        if not any(_holds(place) for place in here):
            raise DataError(
                "it holds nothing that a report shows.",
                field="run",
                value=str(path),
                fix="Name the folder of a run, a pipeline, a model, a probe, or a compare.json.",
            )
        folders += [place for place in here if place not in folders]
    label, kin = _labels(paths), Kinship()
    files = [file for folder in folders for file in _results(folder)]
    results = [(file, result) for file in files if (result := read_result(file)) is not None]
    models = [
        (label(folder), ModelFacts.read(folder)) for folder in folders if _is_model(folder) and not _is_best(folder)
    ]
    trainings = [_training(folder, label(folder)) for folder in folders if is_training(folder)]
    boundaries = [read_boundary(folder, label, values) for folder in folders if (values := _report(folder)) is not None]
    boundaries += derived_boundaries(models, trainings, kin, boundaries)
    across = [
        name for boundary in boundaries for name in boundary.curves
    ]  # in the order of the pictures of their stages
    return Overview(
        folders=list(paths),
        models=models,
        trainings=trainings,
        probes=_probes([folder for folder in folders if (folder / "probe.json").is_file()], label, kin),
        boundaries=boundaries,
        comparisons=[
            (file.parent.name, _named(file, found, label)) for file, found in results if isinstance(found, Comparison)
        ],
        sweeps=[found for _, found in results if isinstance(found, Sweep)],
        benches=[_named_bench(file, found, label) for file, found in results if isinstance(found, BenchResult)],
        looks=Looks([*across, *(name for name, _ in models), *(run.label for run in trainings)]),
        kin=kin,
    )


# -- finding ------------------------------------------------------------------------------------------------


def _folders(top: Path, depth: int = 0) -> Iterator[Path]:
    """A folder and its subfolders that may hold something.

    The points of a sweep are part of it.
    """
    point = _POINT.fullmatch(top.name) and top.parent.name.startswith("seed-")
    if depth and point:
        return
    yield top
    if depth == DEPTH or (top / "sweep.json").is_file():
        return
    for path in sorted(top.iterdir(), key=lambda path: _order(path.name)):
        if path.is_dir() and not path.name.startswith(".") and path.name not in _PASSED_OVER:
            yield from _folders(path, depth + 1)


def _order(name: str) -> list[Any]:
    """Sort key with digits by number: seed-10 after seed-2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _holds(place: Path) -> bool:
    if place.is_file():
        return read_result(place) is not None
    return (
        bool(_results(place))
        or _is_model(place)
        or is_training(place)
        or (place / "probe.json").is_file()
        or _report(place) is not None
    )


def _results(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for name in FILES if (file := place / name).is_file()]


def _is_best(folder: Path) -> bool:
    """Whether it is a run's best checkpoint next to the run's model, which the page shows instead."""
    return folder.name == "best" and (folder.parent / "run.json").is_file() and (folder.parent / "model").is_dir()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / PROVENANCE_FILE).is_file()


def _labels(paths: Sequence[Path]) -> Callable[[Path], str]:
    """Folder -> label: its path in the named folder, with the name of the latter if several are named.

    A model in a run has the label of the run.
    """
    tops = [path.resolve() for path in paths if path.is_dir()]
    names = [top.name for top in tops]
    called = {top: top.name if names.count(top.name) == 1 else f"{top.parent.name}/{top.name}" for top in tops}

    def label(folder: Path) -> str:
        place = folder.resolve()
        place = place.parent if place.name == "model" and (place.parent / "run.json").is_file() else place
        top = next((top for top in tops if place.is_relative_to(top)), None)
        inside = place.relative_to(top).as_posix() if top else "."
        if top is None or inside == ".":
            return called.get(place, place.name)
        return f"{called[top]}/{inside}" if len(tops) > 1 else inside

    return label


# -- reading ---------------------------------------------------------------------------------------------------


def _training(folder: Path, label: str) -> Training:
    record = read_plain(folder / "run.json")
    check_schema(record.get("schema_version"), folder / "run.json")
    summary = folder / "summary.json"
    found = read_plain(summary) if summary.is_file() else {}
    held_out = folder / "held_out.json"
    documents = DocumentLosses.from_json(read_plain(held_out)) if held_out.is_file() else None
    return Training(label, folder, History.read(label, folder), found, record.get("recipe") or {}, documents)


def _probes(folders: Sequence[Path], label: Callable[[Path], str], kin: Kinship) -> list[Probe]:
    """Every probe; one called `before` is shown with its neighbours if text and ancestry are the same."""
    read = {folder: Probed.read(folder) for folder in folders}

    def earlier(folder: Path) -> Probed | None:
        here = folder.parent if folder.name == "probe" else folder
        places = [here.parent / "before", here.parent / "before" / "probe"]
        found = next((read[place] for place in places if place in read and place != folder), None)
        if found is None or why_not_comparable(found, read[folder]) is not None:
            return None
        models = [nearby(part.result.model.folder, here) for part in (found, read[folder])]
        known = [model for model in models if model is not None and _is_model(model)]
        return found if len(known) < 2 or kin.together(*known) else None

    kept = [(folder, earlier(folder)) for folder in folders]
    used = {id(before) for _, before in kept if before is not None}
    shown = [(folder, before) for folder, before in kept if id(read[folder]) not in used]
    names = [_of_probe(folder, read[folder], label) for folder, _ in shown]
    return [
        Probe(name if names.count(name) == 1 else f"{name} ({label(folder)})", name, read[folder], before)
        for name, (folder, before) in zip(names, shown, strict=True)
    ]


def _of_probe(folder: Path, probed: Probed, label: Callable[[Path], str]) -> str:
    """The label of a probe: that of its model, if it exists here."""
    place = nearby(probed.result.model.folder, folder.resolve())
    return label(place if place is not None and _is_model(place) else folder)


def _report(folder: Path) -> Mapping[str, Any] | None:
    """The report.json of a pipeline's boundary, if any."""
    file = folder / "report.json"
    values = read_plain(file) if file.is_file() else None
    return values if isinstance(values, dict) and isinstance(values.get("after"), dict) else None


def _named(file: Path, found: Comparison, label: Callable[[Path], str]) -> Comparison:
    """A comparison with the labels of the page for models that exist here."""

    def place(model: ModelResult) -> Path | None:
        return nearby(model.checkpoints[0].path, file.resolve()) if len(model.checkpoints) == 1 else None

    places = {model.name: where for model in found.models if (where := place(model)) is not None}
    names = {name: label(where) for name, where in places.items() if _is_named(where)}
    others = {model.name for model in found.models} - set(names)
    clash = len(set(names.values())) < len(names) or others & set(names.values())
    return found if clash else under_names(found, names)


def _is_named(place: Path) -> bool:
    return _is_model(place) or is_training(place)


def _named_bench(file: Path, found: BenchResult, label: Callable[[Path], str]) -> Bench:
    """A benchmark with the labels of the page for models that exist here."""
    models, folders = [], []
    for model in found.models:
        place = nearby(model.name, file.resolve())
        if place is not None and _is_named(place):
            folders.append(place)
            model = replace(model, name=label(place))
        models.append(model)
    return Bench(found.model_copy(update={"models": tuple(models)}), folders)
