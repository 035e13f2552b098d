"""align pairs, align score: what a model makes of texts to correct."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smolmoe.cli.output import Json, print_json, print_rows, progress, quiet_libraries, table, tell
from smolmoe.core import units
from smolmoe.recipe.pairs import BATCH_SIZE, MAX_NEW_TOKENS, PROMPTS, TEMPERATURES, TEMPLATE

if TYPE_CHECKING:
    from smolmoe.alignment.pairs import PairsReport
    from smolmoe.core.statistics import Interval
    from smolmoe.evaluation.correction import CorrectionScores, Prediction, SystemScores

SHOWN = 3  # corrections, of the worst and of the best
_NAMES = {"bleu": "BLEU", "gleu": "GLEU", "sari": "SARI", "exact_match": "exact match"}

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub id of a model with its tokenizer.")]
Data = Annotated[Path, typer.Option(help="Rows with texts and their corrections, .jsonl or .parquet.")]
SourceColumn = Annotated[str, typer.Option(help="Column of the text, its instruction included.")]
TargetColumn = Annotated[str, typer.Option(help="Column of its correction.")]
ReferencesColumn = Annotated[
    str | None, typer.Option(help="Column with a list of further corrections.  [default: refs, where rows have it]")
]
Template = Annotated[str, typer.Option(help="What the model gets; {prompt} is the text, \\n a new line.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask through the tokenizer's chat template.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
BatchSize = Annotated[int, typer.Option(help="Texts at a time.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, cuda:N or mps.")]
ASCII_TEMPLATE = TEMPLATE.replace("\n", "\\n")


def add_to(app: typer.Typer) -> None:
    app.command()(pairs)
    app.command()(score)


def pairs(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for pairs.jsonl and report.json.")],
    prompts: Annotated[int, typer.Option(help="Texts to draw from the data, at most.")] = PROMPTS,
    temperatures: Annotated[str, typer.Option(help="Of the two answers to a text; 0 is greedy.")] = ",".join(
        map(str, TEMPERATURES)
    ),
    source_column: SourceColumn = "src",
    target_column: TargetColumn = "tgt",
    references_column: ReferencesColumn = None,
    prompt_template: Template = ASCII_TEMPLATE,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    batch_size: BatchSize = BATCH_SIZE,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of the texts drawn and of the answers.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this was cut off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over in a folder that has pairs.")] = False,
    as_json: Json = False,
) -> None:
    """Sample two answers to each text; the one nearer to a reference, by edit distance, is preferred."""
    quiet_libraries()
    from smolmoe.alignment.pairs_run import make_pairs
    from smolmoe.recipe.base import parse
    from smolmoe.recipe.pairs import PairsRecipe

    values = {
        "model": model,
        "data": str(data),
        "out": out,
        "prompts": prompts,
        "temperatures": _temperatures(temperatures),
        "source_column": source_column,
        "target_column": target_column,
        "references_column": references_column,
        "template": _unescaped(prompt_template),
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "device": device,
        "seed": seed,
    }
    with tell(show=not as_json), progress(show=not as_json) as report:
        result = make_pairs(parse(PairsRecipe, values), resume=resume, overwrite=overwrite, report=report)
    print_json(result.to_json()) if as_json else show_pairs(result, out)


def score(
    model: Model,
    data: Data,
    rows: Annotated[int | None, typer.Option(help="Rows to take, from the first.  [default: all]")] = None,
    source_column: SourceColumn = "src",
    target_column: TargetColumn = "tgt",
    references_column: ReferencesColumn = None,
    prompt_template: Template = ASCII_TEMPLATE,
    chat: Chat = False,
    max_new_tokens: MaxNewTokens = MAX_NEW_TOKENS,
    batch_size: BatchSize = BATCH_SIZE,
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder for scores.json and predictions.jsonl.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace scores that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Correct texts greedily, and score that beside leaving them as they are."""
    quiet_libraries()
    from smolmoe.data.prompts import CorrectionPrompt, read_corrections
    from smolmoe.evaluation.correction import score_checkpoint

    prompt = CorrectionPrompt(_unescaped(prompt_template), chat)
    found = read_corrections(
        data,
        source_column=source_column,
        target_column=target_column,
        references_column=references_column,
        rows=rows,
    )
    with progress(show=not as_json) as report:
        scores = score_checkpoint(
            model,
            found,
            out=out,
            overwrite=overwrite,
            device=device,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            report=report,
        )
    print_json({"schema_version": 1, "model": model, "data": str(data)} | scores.to_json()) if as_json else show_scores(
        scores, model, asked=rows
    )


def _unescaped(template: str) -> str:
    return template.replace("\\n", "\n")


def _temperatures(text: str) -> tuple[float, ...]:
    from smolmoe.errors import RequestError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 2:
        raise RequestError("must be two numbers.", field="temperatures", value=text, fix="For example 1.0,0.5.")
    return values


def show_pairs(result: PairsReport, out: Path) -> None:
    """What became of the prompts."""
    short = "" if result.prompts == result.asked else f" (asked for {result.asked}; the data has no more)"
    print(f"{result.pairs} pairs of {result.prompts} prompts{short}: {out / 'pairs.jsonl'}")
    first, second = result.temperatures
    print_rows(
        [
            ("ties", f"{result.ties} equally near, {result.same} the same text twice"),
            ("preferred", f"temperature {first}: {result.wins[0]}, temperature {second}: {result.wins[1]}"),
            ("distance", f"{result.distance_chosen:.1f} characters chosen, {result.distance_rejected:.1f} rejected"),
            ("cut short", f"{result.cut} of {2 * result.prompts} answers"),
            (
                "sampled",
                f"{result.new_tokens} tokens in {units.duration(result.seconds)}, "
                f"{result.tokens_per_second:.0f} a second",
            ),
        ]
    )


def show_scores(scores: CorrectionScores, model: str, *, asked: int | None) -> None:
    """The metrics beside those of copying, in words whether they are better, and some corrections."""
    count = scores.model.rows
    short = "" if asked is None or asked == count else f" (asked for {asked}; the data has no more)"
    print(f"{model}: {count} texts corrected{short}, {scores.cut} answers cut short")
    systems: dict[str, SystemScores] = {"model": scores.model, "copying the input": scores.copy}
    if scores.human is not None:
        systems[f"a person ({scores.human.rows} texts)"] = scores.human
    lines: list[list[object]] = []
    for name, system in systems.items():
        figures = [_with_interval(system.metrics[metric]) for metric in _NAMES]
        lines.append([name, *figures, f"{system.unchanged:.1%}"])
    lines.append(["model - copying", *(_with_interval(scores.difference[metric], "+") for metric in _NAMES), ""])
    table("In percent, with 95% intervals", ["", *_NAMES.values(), "unchanged"], lines)
    unclear = [metric for metric in scores.not_better if metric not in scores.worse]
    if scores.worse:
        print(f"  ! The model does not beat copying the input: it is worse by {_listed(scores.worse)}.")
    if unclear:
        print(f"  ! It is no better, or not clearly better, by {_listed(unclear)}.")
    if not scores.not_better:
        print("  The model beats copying the input by every metric.")
    print_rows([("sampled", f"{scores.new_tokens} tokens, {scores.tokens_per_second:.0f} a second")])
    _show_corrections(scores.predictions)


def _listed(metrics: Sequence[str]) -> str:
    return ", ".join(_NAMES[metric] for metric in metrics)


def _with_interval(value: Interval, sign: str = "") -> str:
    return f"{value.value:{sign}.1f} ({value.low:{sign}.1f} to {value.high:{sign}.1f})"


def _show_corrections(predictions: tuple[Prediction, ...]) -> None:
    ordered = sorted(predictions, key=lambda one: (one.exact, one.sari))
    shown = ordered if len(ordered) <= 2 * SHOWN else [*ordered[:SHOWN], *ordered[-SHOWN:]]
    for at, one in enumerate(shown):
        if at in (0, SHOWN) and len(shown) < len(ordered):
            print("\nthe worst by SARI" if at == 0 else "\nthe best by SARI")
        print()
        print_rows([("input", one.source), ("output", one.output or "(nothing)"), ("reference", one.references[0])])
