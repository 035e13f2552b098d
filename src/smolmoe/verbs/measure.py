"""Measure: verify, compare, benchmark and score models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from smolmoe.core.progress import Progress, silent
from smolmoe.engines.registry import EngineName
from smolmoe.recipe.bench import BenchRecipe
from smolmoe.recipe.compare import CompareRecipe
from smolmoe.recipe.pairs import BATCH_SIZE, MAX_NEW_TOKENS, TEMPLATE, PairsRecipe
from smolmoe.recipe.resolve import Given, values_of
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.recipe.verification import VerifyRecipe
from smolmoe.recipe.words import Device, DryRun, Overwrite, RecipeGiven, Seed, Set
from smolmoe.results.verification import VerifyMode
from smolmoe.verbs.signature import said, spells_out, takes

if TYPE_CHECKING:
    from smolmoe.evaluation.correction import CorrectionScores
    from smolmoe.results.bench import BenchResult
    from smolmoe.results.comparison import Comparison
    from smolmoe.results.engine import EngineVerification
    from smolmoe.results.scaling_law import Sweep
    from smolmoe.scaling.forecast import SweepForecast
    from smolmoe.verification.verify import Verification

Paths = str | Path | Sequence[str | Path]


def verify(
    dense: Annotated[str | Path, Field(description="folder of the dense model; with an engine, of the MoE")],
    moe: Annotated[str | Path | None, Field(description="folder of the MoE made from it")] = None,
    *,
    engine: Annotated[
        EngineName | None, Field(description="engine that runs the MoE; it is compared with transformers")
    ] = None,
    python: Annotated[
        Path | None, Field(description="Python that has the engine (default: as `make engines` installs it)")
    ] = None,
    timeout: Annotated[float, Field(description="time limit for the engine, in seconds")] = 600.0,
    text: Annotated[Path | None, said(VerifyRecipe, "text")] = None,
    mode: Annotated[VerifyMode, said(VerifyRecipe, "mode")] = "full",
    device: Device = "auto",
    seed: Seed = 0,
    report: Progress | None = None,
    **options: Any,
) -> Verification | EngineVerification:
    """Measure an MoE against its dense source, or in an engine.

    Two folders are compared with each other and held against the claim. One folder and an engine: the engine runs it in
    its own Python, and its log-probabilities and greedy tokens are compared with those of transformers in float32.
    The command exits with 1 if a check fails or the engine differs.

    Args:
        **options: `claim`, `sequences` and `length`, as in `smolmoe.verification.verify.verify`; with an
            engine those of `smolmoe.engines.run.verify_in`.
    """
    from smolmoe.errors import RequestError

    if engine is not None:
        from smolmoe.engines.run import verify_in

        if moe is not None:
            fix = "Give the MoE's folder only."
            raise RequestError("an engine runs one folder.", field="moe", value=str(moe), fix=fix)
        if mode != "full":
            problem = "an engine is compared with transformers in one way only."
            raise RequestError(problem, field="mode", value=mode, fix="Omit it.")
        asked: dict[str, Any] = {"python": python, "timeout": timeout, "text": text, "device": device, "seed": seed}
        return verify_in(engine, dense, **asked, report=report, **options)
    if moe is None:
        fix = "Give both folders, or the MoE's and `engine='vllm'`."
        raise RequestError("one folder is not enough without an engine.", fix=fix)
    from smolmoe.verification.verify import verify as run

    return run(dense, moe, mode=mode, text=text, device=device, seed=seed, report=report or silent, **options)


def compare(
    models: Annotated[Mapping[str, Paths], said(CompareRecipe, "models")],
    data: Annotated[str | Path, said(CompareRecipe, "data")],
    *,
    by: Annotated[str | None, said(CompareRecipe, "by")] = None,
    tokens: Annotated[int | None, said(CompareRecipe, "tokens")] = None,
    document_tokens: Annotated[int | None, said(CompareRecipe, "document_tokens")] = None,
    length: Annotated[int | None, said(CompareRecipe, "length")] = None,
    speed: Annotated[bool, said(CompareRecipe, "speed")] = True,
    tasks: Annotated[
        str | Path | None, Field(description="task file (.yaml) or folder for lm-evaluation-harness")
    ] = None,
    out: Annotated[
        Path | None, Field(description="output folder for compare.json and table.md (default: none)")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    report: Progress | None = None,
) -> Comparison:
    """Compare models on the same held-out text.

    The first model is the baseline. Losses come with intervals; parameters, FLOPs, speed and memory stand next to them.
    """
    from smolmoe.evaluation.compare.run import compare as run

    return run(
        models,
        data,
        by=by,
        tokens=tokens,
        document_tokens=document_tokens,
        length=length,
        speed=speed,
        tasks=tasks,
        out=out,
        overwrite=overwrite,
        device=device,
        report=report,
    )


@takes(BenchRecipe, "model")
def bench(recipe: BenchRecipe, *, report: Progress | None = None) -> BenchResult:
    """Measure parameters, FLOPs, latency, throughput and memory."""
    from smolmoe.core.files import check_parent
    from smolmoe.evaluation.bench.run import bench as run

    check_parent(recipe.out)
    found = run(recipe, report=report)
    if recipe.out is not None:
        found.write(recipe.out)
    return found


@spells_out(SweepRecipe)
def sweep(
    recipe: RecipeGiven,
    values: Mapping[str, Any] | None = None,
    request: SweepRecipe | None = None,
    *,
    set: Set = (),  # noqa: A002 - the option's name
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    report: Progress | None = None,
    **budgets: Any,
) -> Sweep | SweepForecast:
    """Train at several token budgets and fit a scaling law.

    Args:
        values, request: a recipe's values and a parsed SweepRecipe, instead of `budgets`; `recipe` is then its name.
        **budgets: the fields of SweepRecipe.
    """
    from smolmoe.recipe.base import parse
    from smolmoe.scaling.run import sweep as run

    given: Given = recipe
    if values is None:
        values = values_of(given, {}, changes=set)
    if request is None:
        budgets = {"out": Path(f"{values.get('out', 'runs/recipe')}-sweep"), **budgets}
        request = parse(SweepRecipe, budgets)
    name = Path(given).stem if isinstance(given, str | Path) else "recipe"
    if dry_run:
        from smolmoe.scaling.forecast import forecast_sweep
        from smolmoe.scaling.plan import make_plan

        return forecast_sweep(make_plan(name, values, request))
    return run(name, values, request, overwrite=overwrite, report=report)


def score_corrections(
    model: Annotated[str | Path, Field(description="folder or hub id of a model with its tokenizer")],
    *,
    data: Annotated[str | Path, Field(description="file with texts and corrections (.jsonl or .parquet)")],
    rows: Annotated[int | None, Field(description="maximum number of rows, from the first (default: all)")] = None,
    source_column: Annotated[str, Field(description="column with the text, including its instruction")] = "src",
    target_column: Annotated[str, Field(description="column with the correction")] = "tgt",
    references_column: Annotated[str | None, said(PairsRecipe, "references_column")] = None,
    template: Annotated[str, said(PairsRecipe, "template")] = TEMPLATE,
    chat: Annotated[bool, said(PairsRecipe, "chat")] = False,
    max_new_tokens: Annotated[int, said(PairsRecipe, "max_new_tokens")] = MAX_NEW_TOKENS,
    batch_size: Annotated[int, said(PairsRecipe, "batch_size")] = BATCH_SIZE,
    device: Device = "auto",
    out: Annotated[Path | None, Field(description="output folder for scores.json and predictions.jsonl")] = None,
    overwrite: Overwrite = False,
    report: Progress | None = None,
) -> CorrectionScores:
    """Score greedy corrections; the baseline copies the input."""
    from smolmoe.data.prompts import CorrectionPrompt, read_corrections
    from smolmoe.evaluation.correction import score_checkpoint

    columns = {"source_column": source_column, "target_column": target_column, "references_column": references_column}
    found = read_corrections(Path(data), rows=rows, **columns)  # type: ignore[arg-type]
    return score_checkpoint(
        model,
        found,
        out=out,
        overwrite=overwrite,
        device=device,
        prompt=CorrectionPrompt(template, chat),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        report=report,
    )
