"""A probe and its page, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.core.progress import Progress
from smolmoe.data.rows import write_rows
from smolmoe.errors import RequestError
from smolmoe.probing.measure import probe as measure
from smolmoe.recipe.probe import ProbeOptions, ProbeRecipe, ProbeTextRecipe
from smolmoe.reports.probe_page import write_page
from smolmoe.results.probe import ProbeResult

CHARACTERS_A_TOKEN = 8  # more than enough text for the requested tokens


def probe(
    model: str | Path,
    data: str | Path,
    *,
    out: Path,
    before: Path | None = None,
    runs: dict[str, Path] | None = None,
    **options: Any,
) -> ProbeResult:
    """Probe an MoE and write `probe.json`, `index.html` and the figures into `out`.

    Args:
        before: folder of an earlier probe, shown next to this one.
        runs: label -> run folder of a training, whose curves are shown.
        **options: as `smolmoe.probing.measure.probe` takes them; its docstring lists the errors too.
    """
    _check_shown("before", before, "probe.json")
    for run in (runs or {}).values():
        _check_shown("run", run, "metrics.jsonl")
    result = measure(model, data, out=out, **options)
    if (report := options.get("report")) is not None:
        report("Drawing", 0, 0)
    write_page(out, out, before=before, runs=runs)
    return result


def probe_text(recipe: ProbeTextRecipe, *, overwrite: bool = False, report: Progress | None = None) -> ProbeResult:
    """`probe` for a recipe that has been parsed."""
    return probe(
        recipe.model,
        recipe.data,
        out=recipe.out,
        before=None if recipe.before is None else Path(recipe.before),
        fit_data=recipe.fit_data,
        options=recipe,
        overwrite=overwrite,
        report=report,
        **_shared(recipe),
    )


def _check_shown(field: str, folder: Path | None, file: str) -> None:
    """Check before the measurement that what the page shows exists."""
    if folder is not None and not (folder / file).is_file():
        raise RequestError(f"there is no {file} in this folder.", field=field, value=str(folder))


def run_probe(recipe: ProbeRecipe, *, report: Progress | None = None) -> dict[str, Any]:
    """The probe of a pipeline: on the held-out side of its data. Returns the headline figures."""
    characters = CHARACTERS_A_TOKEN * max(recipe.tokens, recipe.probe_tokens)
    held_out, training = write_rows(recipe.data, recipe.out / "text", characters=characters)
    result = probe(
        recipe.model,
        held_out,
        out=recipe.out / "probe",
        before=None if recipe.before is None else Path(recipe.before) / "probe",
        fit_data=training,
        options=ProbeOptions.of(recipe),
        overwrite=True,
        report=report,
        **_shared(recipe),
    )
    return headline(result) | {"page": str(recipe.out / "probe" / "index.html")}


def _shared(recipe: ProbeRecipe | ProbeTextRecipe) -> dict[str, Any]:
    """What both kinds of probe take as it stands."""
    runs = {label: Path(folder) for label, folder in recipe.runs.items()}
    return {"runs": runs, **recipe.model_dump(include={"dense", "against", "device"})}


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
    }
