"""A probe and its page, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.data.rows import write_rows
from smolmoe.errors import RequestError
from smolmoe.inference.expert_choice import choices
from smolmoe.probing.measure import probe as measure
from smolmoe.recipe.base import parse
from smolmoe.recipe.probe import ProbeRecipe, ProbeTextRecipe
from smolmoe.reports.probe_page import write_page
from smolmoe.results.probe import ProbeResult

CHARACTERS_A_TOKEN = 8  # more than enough text for the requested tokens


def probe(recipe: ProbeTextRecipe, *, overwrite: bool = False, report: Progress | None = None) -> ProbeResult:
    """Probe an MoE and write `probe.json`, `index.html` and the figures.

    Raises:
        SmolmoeError: as `smolmoe.probing.measure.probe`.
    """
    before = None if recipe.before is None else Path(recipe.before)
    runs = {label: Path(folder) for label, folder in recipe.runs.items()}
    _check_shown("before", before, "probe.json")
    for run in runs.values():
        _check_shown("run", run, "metrics.jsonl")
    others = recipe.model_dump(include={"fit_data", "dense", "against", "device"})
    result = measure(
        recipe.model, recipe.data, out=recipe.out, options=recipe, overwrite=overwrite, report=report, **others
    )
    if report is not None:
        report("Drawing", 0, 0)
    write_page(recipe.out, recipe.out, before=before, runs=runs)
    return result


def _check_shown(field: str, folder: Path | None, file: str) -> None:
    """Check before the measurement that the page can show it."""
    if folder is not None and not (folder / file).is_file():
        raise RequestError(f"there is no {file} in this folder.", field=field, value=str(folder))


def run_probe(recipe: ProbeRecipe, *, report: Progress | None = None) -> dict[str, Any]:
    """The probe of a pipeline: on the held-out side of its data. Returns the headline figures."""
    characters = CHARACTERS_A_TOKEN * max(recipe.tokens, recipe.probe_tokens)
    held_out, training = write_rows(recipe.data, recipe.out / "text", characters=characters)
    values = recipe.model_dump(exclude={"data"}) | {"data": str(held_out), "fit_data": str(training)}
    values |= {"length": recipe.data.length, "out": recipe.out / "probe"}
    values["before"] = None if recipe.before is None else str(Path(recipe.before) / "probe")
    result = probe(parse(ProbeTextRecipe, values), overwrite=True, report=report)
    return headline(result) | {"page": str(recipe.out / "probe" / "index.html")}


def headline(result: ProbeResult) -> dict[str, Any]:
    """The main figures of the specialisation."""
    peak = max(result.layers, key=lambda layer: layer.separation)
    last = result.last_third
    return {
        "separation": {"layer": peak.layer, "peak": peak.separation, "by_chance": peak.separation_baseline.p95},
        "contrast": max(layer.contrast for layer in result.layers),
        "accuracy": last.accuracy,
        "ceiling": last.ceiling if last.dense_ceiling is None else last.dense_ceiling,
        "flags": [] if result.losses is None else list(result.losses.flags),
        "routing": routing(result),
    }


def routing(result: ProbeResult) -> dict[str, dict[str, float]]:
    """Domain -> name of an expert -> its share of the domain's choices, mean over the last third of the layers."""
    named = choices(result.model.names, result.model.experts)
    last = [at for at, layer in enumerate(result.layers) if layer.layer in result.last_third.layers]

    def share(domain: int, experts: Sequence[int]) -> float:
        return sum(result.matrix[at][domain][expert] for at in last for expert in experts) / len(last)

    return {
        domain: {name: share(index, experts) for name, experts in named.items()}
        for index, domain in enumerate(result.domains)
    }
