"""align score: corrections, compared with a copy of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table, unescaped
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.core.statistics import Interval
    from smolmoe.evaluation.correction import CorrectionScores, Prediction, SystemScores

SHOWN = 3  # of the worst and of the best corrections
_NAMES = {"bleu": "BLEU", "gleu": "GLEU", "sari": "SARI", "exact_match": "exact match"}


def show_scores(scores: CorrectionScores, model: str, *, asked: int | None) -> None:
    """The metrics next to those of copying, whether they are better, and a few corrections."""
    count = scores.model.rows
    short = "" if asked is None or asked == count else f" (asked for {asked}; the data has no more)"
    print(f"{model}: {count} texts corrected{short}, {scores.cut} answers truncated")
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
        print(f"  ! It is not better, or not clearly better, by {_listed(unclear)}.")
    if not scores.not_better:
        print("  The model beats copying the input by every metric.")
    print_rows([("sampled", f"{scores.new_tokens} tokens, {scores.tokens_per_second:.0f} per second")])
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


def _to_json(scores: CorrectionScores, given: Given) -> dict[str, Any]:
    return {"schema_version": 1, "model": given["model"], "data": str(given["data"])} | scores.to_json()


COMMAND = Command(
    measure.score_corrections,
    lambda scores, given: show_scores(scores, given["model"], asked=given.get("rows")),
    names={"template": ("--template", "--prompt-template")},
    read={"template": unescaped},
    to_json=_to_json,
)
