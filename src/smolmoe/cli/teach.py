"""data teach: rows from a model behind an HTTP endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.results.teaching import Requests, TeachPlan, TeachReport

SHORTFALL = 1
INTERRUPTED = 130


def _show_plan(plan: TeachPlan, given: Given) -> None:
    tokens = units.tokens(plan.prompt_tokens_about)
    rows: list[tuple[str, object]] = [
        ("prompts", plan.prompts),
        *(("", f"{number} {reason}") for reason, number in plan.left_out.items()),
        ("requests", f"{plan.requests} (a prompt in several rows is asked once)"),
        ("prompt tokens", f"about {tokens}, estimated from {plan.characters} characters"),
    ]
    if plan.cost_at_most_about is not None:
        rows.append(("cost", f"about {plan.cost_at_most_about:.4g} at most"))
    print_rows(rows)


def _show_report(found: TeachReport, given: Given) -> None:
    questions, rows, tokens, out = found.questions, found.rows, found.tokens, Path(given["out"])
    uncounted = tokens.answers_without_count
    lines: list[tuple[str, object]] = [
        ("rows", f"{rows.written} in {out / 'rows.jsonl'}"),
        ("answers", f"{questions.answered} of {questions.distinct}, {questions.answered_now} of them now"),
        ("requests", _requests(found.requests)),
        (
            "tokens",
            f"{units.tokens(tokens.prompt)} in, {units.tokens(tokens.answer)} out"
            + (f" ({uncounted} answers came without a count)" if uncounted else ""),
        ),
    ]
    if found.cost is not None:
        lines.append(("cost", f"{found.cost:.4g}"))
    if found.student is not None:
        fit = found.student
        lines.append(("targets", f"{fit.fitting} rows fit the student's tokenizer, {fit.refused} do not"))
        if fit.targets:
            lines.append(("cache", f"{out / 'targets'} (train on the column student_text)"))
    print_rows([*lines, ("seconds", found.seconds)])
    for reason in list(found.student.reasons)[:3] if found.student is not None else ():
        print(f"not the student's tokens: {reason}")
    _show_shortfall(found, given)


def _requests(requests: Requests) -> str:
    retried = ", ".join(f"{kind} {times}" for kind, times in requests.retried_now.items())
    return f"{requests.now} now" + (f"; tried again: {retried}" if retried else "")


def _show_shortfall(found: TeachReport, given: Given) -> None:
    rows = found.rows
    if rows.failed:
        reasons = ", ".join(f"{kind} {times}" for kind, times in found.failures.reasons.items())
        print(f"rows without an answer: {rows.failed} ({reasons}), listed in {Path(given['out']) / 'failed.ndjson'}")
    if rows.left:
        why = f"--max-cost {given.get('max_cost', 0):g}" if found.stopped == "max_cost" else found.stopped
        print(f"rows left to ask: {rows.left} ({why})")
    if rows.failed or rows.left:
        print("the same command with --resume asks those, and no prompt that was answered")


def _exit_code(found: TeachReport, given: Given) -> int:
    if given.get("dry_run"):
        return 0
    if found.stopped == "interrupted":
        return INTERRUPTED
    return SHORTFALL if found.rows.failed or found.rows.left else 0


COMMAND = Command(train.teach, _show_report, _show_plan, exit_code=_exit_code)
