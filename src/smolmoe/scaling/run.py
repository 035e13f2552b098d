"""A sweep: the same training at several token budgets, and the scaling law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.progress import Progress, silent
from smolmoe.core.provenance import command, versions
from smolmoe.errors import DataError
from smolmoe.evaluation.compare.lineage import read_lineage
from smolmoe.evaluation.held_out import same_text
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.reports.drawing import save_figure
from smolmoe.reports.scaling import sweep_figure
from smolmoe.results.scaling_law import FILE, Curve, HeldOutFacts, JointLaw, Point, Schedule, Sweep
from smolmoe.scaling.law import (
    FAR,
    Fit,
    band_of,
    budgets_of,
    fit_curves,
    law_of,
    neighbours_of,
    tenfold_of,
    uncertainty_of,
)
from smolmoe.scaling.law_joint import fit_joint, joint_reason
from smolmoe.scaling.law_needs import power_of
from smolmoe.scaling.law_noise import Observed
from smolmoe.scaling.plan import Plan, Start, make_plan
from smolmoe.scaling.runs import Runs, Trained, start_loss
from smolmoe.training.distributed import held_by_main, on_main

FIGURE = "sweep.png"


def sweep(
    name: str,
    values: Mapping[str, Any],
    request: SweepRecipe,
    *,
    overwrite: bool = False,
    report: Progress | None = None,
) -> Sweep:
    """Train at every budget, fit the law, and write `sweep.json` and `sweep.png` next to the runs.

    With several processes all train, and one does the rest.

    Args:
        name: of the recipe, for titles.
        values: of a training or a pipeline, as `recipe.files.load` returns them.
        request: budgets, seeds and the folder. Finished trainings are not repeated.
        overwrite: start over if the folder holds a sweep.
        report: called with the progress.

    Raises:
        RequestError: budgets, stage, schedule or held-out text do not fit together (`make_plan`).
        OutputError: the folder holds a sweep of another recipe, or something else.
        DataError: the runs there were measured on different held-out text.
        SmolmoeError: what `train` raises; a restarted sweep resumes.
    """
    report = report or silent
    plan = make_plan(name, values, request)
    runs = Runs(plan, report)
    runs.join()
    with held_by_main(request.out):
        runs.open(overwrite=overwrite)
        trained = [runs.curve(start) for start in plan.starts]
        report("Fitting", 0, 0)
        return on_main(lambda: _finished(plan, trained))


def _finished(plan: Plan, trained: Sequence[Sequence[Trained]]) -> Sweep:
    found = conclude(plan, trained)
    found.write(plan.request.out / FILE)
    draw(found, plan.request.out / FIGURE)
    return found


def draw(found: Sweep, path: Path) -> None:
    """Write the figure of a sweep as a PNG."""
    save_figure(sweep_figure(found), path)


def conclude(plan: Plan, trained: Sequence[Sequence[Trained]]) -> Sweep:
    """The laws of finished trainings, one list for each of the plan's starts.

    Raises:
        DataError: they were not measured on the same held-out text.
    """
    _check_same_text(trained)
    observed = [_observed(plan, runs) for runs in trained]
    known = [_known_tokens(plan, start) for start in plan.starts]
    fits = fit_curves(observed, known)
    curves = tuple(_curve(plan, *parts) for parts in zip(plan.starts, trained, fits, known, strict=True))
    joint, joint_reason = _joint(plan, observed)
    first = trained[0][0]
    rate = plan.rate
    return Sweep(
        recipe=plan.name,
        stage=plan.stage,
        model=str(plan.starts[0].values["model"].get("path") or "new"),
        schedule=Schedule(rate.kind, rate.name, rate.warmup, rate.decay, rate.text),
        held_out=HeldOutFacts(
            len(first.documents["tokens"]),
            sum(first.documents["tokens"]),
            tuple(sorted(set(first.documents["domains"]))),
        ),
        training_tokens=_text_tokens(trained),
        largest=plan.largest,
        extrapolated_to=plan.until,
        curves=curves,
        joint=joint,
        joint_reason=joint_reason,
        uncertainty=uncertainty_of(fits),
        warnings=tuple(_warnings(plan, trained, curves)),
        versions=versions("numpy", "scipy"),
        command=command(),
    )


def _check_same_text(trained: Sequence[Sequence[Trained]]) -> None:
    every = [run for runs in trained for run in runs]
    for run in every[1:]:
        if not same_text(run.documents, every[0].documents):
            raise DataError(
                f"was measured on different held-out text than {every[0].folder}.",
                field="held_out",
                value=str(run.folder),
                fix="Restore the text, or start over with `overwrite=True`.",
            )


def _observed(plan: Plan, runs: Sequence[Trained]) -> Observed:
    of = {(run.steps, run.seed): run.documents["nll"] for run in runs}
    nll = np.array([[of[steps, seed] for seed in plan.request.seeds] for steps in plan.steps], dtype=float)
    tokens = np.array(plan.steps, dtype=float) * plan.step_tokens
    return Observed(tokens, nll, np.array(runs[0].documents["tokens"], dtype=float))


def _known_tokens(plan: Plan, start: Start) -> int | None:
    """Tokens that the starting model was trained on, if given or on record."""
    if plan.request.start_tokens is not None:
        return plan.request.start_tokens
    path = start.values["model"].get("path")
    if path is None:
        return 0
    checkpoint = open_checkpoint(str(path), revision=start.values["model"].get("revision"))
    return read_lineage(checkpoint.folder, fingerprint(checkpoint), None, lambda folder, length: 0.0).tokens


def _curve(plan: Plan, start: Start, runs: Sequence[Trained], fit: Fit, known: int | None) -> Curve:
    points = [
        Point(
            tokens=run.steps * plan.step_tokens,
            steps=run.steps,
            seed=run.seed,
            loss=run.summary["held_out"]["loss"],
            by_domain=run.summary["held_out"]["by_domain"],
            flops=run.summary["flops"],
            seconds=run.summary["train_seconds"],
            run=run.folder.relative_to(plan.request.out).as_posix(),
        )
        for run in runs
    ]
    return Curve(
        name=start.name,
        dense_tokens=start.dense_tokens if start.dense_tokens is not None else known or None,
        start_loss=start_loss(start),
        points=tuple(sorted(points, key=lambda point: (point.tokens, point.seed))),
        budgets=budgets_of(fit),
        law=law_of(fit),
        reason=fit.reason,
        neighbours=neighbours_of(fit),
        tenfold=tenfold_of(fit, plan.until),
        band=band_of(fit, plan.until),
        power=power_of(fit),
    )


def _joint(plan: Plan, observed: Sequence[Observed]) -> tuple[JointLaw | None, str | None]:
    dense = [start.dense_tokens for start in plan.starts if start.dense_tokens is not None]
    if not dense:
        return None, None
    reason = joint_reason(observed, dense)
    return (None, reason) if reason is not None else (fit_joint(observed, dense), None)


def _text_tokens(trained: Sequence[Sequence[Trained]]) -> int:
    return min(int(run.summary["data"]["train"]["tokens"]) for runs in trained for run in runs)


def _warnings(plan: Plan, trained: Sequence[Sequence[Trained]], curves: Sequence[Curve]) -> list[str]:
    found = []
    text = _text_tokens(trained)
    streamed = any(source.get("streaming") for source in plan.starts[0].values["data"]["sources"])
    if plan.largest > text and not streamed:
        found.append(
            f"The text to train on has {text:,} tokens: larger budgets read it again, and the law does not describe "
            "fresh text."
        )
    elif plan.until > text and not streamed:
        found.append(f"The law describes fresh text, of which {text:,} tokens exist here.")
    if plan.until > FAR * plan.largest:
        found.append(
            f"Beyond {FAR * plan.largest:,} tokens, ten times the largest budget, the law is a guess that its interval "
            "does not cover: another form could fit the points equally well and give other losses."
        )
    for curve in curves:
        first = curve.points[0]
        if curve.start_loss is not None and first.loss > curve.start_loss:
            found.append(
                f"{curve.name}: {first.tokens:,} tokens end at a higher loss ({first.loss:.4f}) than they started with "
                f"({curve.start_loss:.4f}), less than the start of the training costs. Raise the smallest budget."
            )
    if plan.rate.kind == "constant":
        found.append("No budget had a learning-rate decay: a training with a final decay is better than this law.")
    return found
