"""Everything that some folders say: models, trainings, probes, boundaries, comparisons, sweeps, speed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.errors import DataError
from smolmoe.provenance import PROVENANCE_FILE, check_schema
from smolmoe.report.model_facts import ModelFacts
from smolmoe.report.results import Comparison, read_comparison, read_result
from smolmoe.report.specialisation_data import Probed
from smolmoe.report.training_curves import History

DEPTH = 5
_PASSED_OVER = {"checkpoints", "tokenizer", "corpus", "text", "runs", "adapters"}


@dataclass(frozen=True)
class Training:
    """One run folder.

    Attributes:
        label: its folder, seen from where the report was asked for.
        folder: where it is.
        history: its metrics.
        summary: what it ended with; empty of a run that is not finished.
        recipe: what was asked.
    """

    label: str
    folder: Path
    history: History
    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Probe:
    """A probe, with the one before the training where there is one beside it."""

    label: str
    after: Probed
    before: Probed | None


@dataclass(frozen=True)
class Boundary:
    """What a conversion did to the held-out loss.

    Attributes:
        label: of the pipeline.
        curves: label -> (training tokens seen, held-out loss); the tokens of runs after the conversion count on.
        at: tokens at the conversion.
        rows: label -> numbers of the runs after it: `final`, `jump`, `tokens`, `flops`, `difference` as they are known.
        reference: label of the run that the others are compared with.
        documents, tokens: held out.
        by_domain: label -> domain (`all` first) -> loss, where it is known.
    """

    label: str
    curves: Mapping[str, Sequence[tuple[float, float]]]
    at: float
    rows: Mapping[str, Mapping[str, Any]]
    reference: str | None
    documents: int
    tokens: int
    by_domain: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Overview:
    """What was found, each kind in order of its folder."""

    folders: Sequence[Path]
    models: Sequence[tuple[str, ModelFacts]]
    trainings: Sequence[Training]
    probes: Sequence[Probe]
    boundaries: Sequence[Boundary]
    comparisons: Sequence[Comparison]
    sweeps: Sequence[Mapping[str, Any]]
    benches: Sequence[Mapping[str, Any]]

    @property
    def moes(self) -> list[tuple[str, ModelFacts]]:
        return [(label, model) for label, model in self.models if model.experts]

    def to_json(self) -> dict[str, Any]:
        """How many of each kind, by the labels under which the page shows them."""
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
    """Read what lies in folders, at most five deep, or in result files named themselves.

    Raises:
        DataError: a path does not exist, or holds nothing of smolmoe's.
        CheckpointError: a file is of a schema that is not read here.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError("there is no such folder.", field="run", value=str(path))
        here = [path] if path.is_file() else list(_folders(path))
        if not any(_holds(place) for place in here):
            raise DataError(
                "there is nothing in it that smolmoe wrote.",
                field="run",
                value=str(path),
                fix="Name the folder of a run, a pipeline, a model, a probe, or a compare.json.",
            )
        folders += [place for place in here if place not in folders]
    label = _labels(paths)
    files = [file for folder in folders for file in _results(folder)]
    return Overview(
        folders=list(paths),
        models=[
            (label(folder), ModelFacts.read(folder)) for folder in folders if _is_model(folder) and not _is_best(folder)
        ],
        trainings=[_training(folder, label(folder)) for folder in folders if _is_training(folder)],
        probes=_probes([folder for folder in folders if (folder / "probe.json").is_file()], label),
        boundaries=[found for folder in folders for found in _boundaries(folder, label(folder))],
        comparisons=[compared for file in files if (compared := read_comparison(file)) is not None],
        sweeps=[values for file in files if (values := read_result(file, "sweep")) is not None],
        benches=[values for file in files if (values := read_result(file, "bench")) is not None],
    )


# -- where things are ------------------------------------------------------------------------------------------------


def _folders(top: Path, depth: int = 0) -> Iterator[Path]:
    """A folder and those in it that may hold something; a sweep's points are told by the sweep."""
    yield top
    if depth == DEPTH or (top / "sweep.json").is_file():
        return
    for path in sorted(top.iterdir(), key=lambda path: _order(path.name)):
        if path.is_dir() and not path.name.startswith(".") and path.name not in _PASSED_OVER:
            yield from _folders(path, depth + 1)


def _order(name: str) -> list[Any]:
    """Digits by number: seed-10 after seed-2."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _holds(place: Path) -> bool:
    if place.is_file():
        return any(read_result(place, kind) is not None for kind in ("compare", "sweep", "bench"))
    return (
        bool(_results(place))
        or _is_model(place)
        or _is_training(place)
        or (place / "probe.json").is_file()
        or _report(place) is not None
    )


def _results(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for name in ("compare.json", "sweep.json", "bench.json") if (file := place / name).is_file()]


def _is_best(folder: Path) -> bool:
    """Whether it is a run's best checkpoint beside the run's model, which the page shows."""
    return folder.name == "best" and (folder.parent / "run.json").is_file() and (folder.parent / "model").is_dir()


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / PROVENANCE_FILE).is_file()


def _is_training(folder: Path) -> bool:
    return (folder / "run.json").is_file() and (folder / "metrics.jsonl").is_file()


def _labels(paths: Sequence[Path]) -> Callable[[Path], str]:
    """Folder -> what it is called: its path in the folder that was named, with that one's name where there are several.

    A model in a run is called as the run.
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


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}.", field=file.name, value=str(file)) from error


# -- what they say ---------------------------------------------------------------------------------------------------


def _training(folder: Path, label: str) -> Training:
    record = _json(folder / "run.json")
    check_schema(record.get("schema_version"), folder / "run.json")
    summary = folder / "summary.json"
    found = _json(summary) if summary.is_file() else {}
    return Training(label, folder, History.read(label, folder), found, record.get("recipe") or {})


def _probes(folders: Sequence[Path], label: Callable[[Path], str]) -> list[Probe]:
    """Every probe; one called `before` goes with those beside it."""
    read = {folder: Probed.read(folder) for folder in folders}

    def earlier(folder: Path) -> Probed | None:
        here = folder.parent if folder.name == "probe" else folder
        places = [here.parent / "before", here.parent / "before" / "probe"]
        found = next((read[place] for place in places if place in read and place != folder), None)
        same = found is not None and all(
            getattr(found, field) == getattr(read[folder], field) for field in ("domains", "layers", "experts")
        )
        return found if same else None

    kept = [(folder, earlier(folder)) for folder in folders]
    used = {id(before) for _, before in kept if before is not None}
    return [Probe(label(folder), read[folder], before) for folder, before in kept if id(read[folder]) not in used]


def _report(folder: Path) -> Mapping[str, Any] | None:
    """A report.json of ours: of a pipeline's boundary (`after`) or of the quickstart (`boundary`)."""
    file = folder / "report.json"
    values = _json(file) if file.is_file() else None
    ours = isinstance(values, dict) and (isinstance(values.get("after"), dict) or "boundary" in values)
    return values if ours else None


def _boundaries(folder: Path, label: str) -> list[Boundary]:
    values = _report(folder)
    if values is None:
        return []
    return [_of_pipeline(folder, label, values) if "after" in values else _of_quickstart(folder, label, values)]


def _of_pipeline(folder: Path, label: str, values: Mapping[str, Any]) -> Boundary:
    before = values.get("before")
    at = float(before["tokens"]) if before else 0.0
    curves: dict[str, list[tuple[float, float]]] = {}
    if before:
        points = _held_out(folder.parent / before["label"]) or [(0, before["first"]), (1, before["loss"])]
        last = points[-1][0] or 1
        curves[f"{before['label']}, before"] = [(at * step / last, loss) for step, loss in points]
    for name, row in values["after"].items():
        steps = sorted((int(step), loss) for step, loss in row["losses"].items())
        last = steps[-1][0] or 1
        curves[name] = [(at + row["tokens"] * step / last, loss) for step, loss in steps]
    rows = {name: {key: row[key] for key in row if key != "losses"} for name, row in values["after"].items()}
    tokens = values["held_out_tokens"]
    return Boundary(label, curves, at, rows, values.get("reference"), values["documents"], tokens, {})


def _held_out(folder: Path) -> list[tuple[int, float]]:
    return History.read("run", folder).points("held_out", "loss") if (folder / "metrics.jsonl").is_file() else []


_QUICK = {
    "dense": "dense, before",
    "moe": "MoE, just converted",
    "moe_trained": "MoE, trained on",
    "dense_continued": "dense, trained on",
}


def _of_quickstart(folder: Path, label: str, values: Mapping[str, Any]) -> Boundary:
    found = values["boundary"]
    names = {"dense": "dense", "moe-trained": "MoE", "dense-trained": "dense, same tokens"}
    curves: dict[str, list[tuple[float, float]]] = {}
    metrics = folder / "metrics.jsonl"
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else ():
        row = json.loads(line)
        if row.get("kind") == "held_out" and row.get("stage") in names:
            curves.setdefault(names[row["stage"]], []).append((row["tokens"], row["loss"]))
    at = curves["dense"][-1][0] if curves.get("dense") else 0.0
    for name in ("MoE", "dense, same tokens"):
        if name in curves and curves[name][0][0] > at:
            curves[name].insert(0, (at, found["moe" if name == "MoE" else "dense"]["loss"]))
    rows: dict[str, dict[str, Any]] = {"MoE": {"final": found["moe_trained"]["loss"], "jump": found["jump"]}}
    if found.get("dense_continued"):
        rows["dense, same tokens"] = {"final": found["dense_continued"]["loss"]}
        rows["MoE"]["difference"] = found["difference"]
    by_domain = {
        words: {"all": found[key]["loss"], **found[key]["by_domain"]} for key, words in _QUICK.items() if found.get(key)
    }
    reference = "dense, same tokens" if found.get("dense_continued") else None
    return Boundary(label, curves, at, rows, reference, found["documents"], found["tokens"], by_domain)
