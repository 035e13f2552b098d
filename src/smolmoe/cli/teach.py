"""data teach: rows from a model behind an HTTP endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows
from smolmoe.core import units
from smolmoe.verbs import train

SHORTFALL = 1
INTERRUPTED = 130


def _show_plan(planned: dict[str, Any]) -> None:
    rows: list[tuple[str, object]] = [
        ("prompts", planned["prompts"]),
        ("requests", f"{planned['requests']} (a prompt that stands in several rows is asked once)"),
        (
            "prompt tokens",
            f"about {units.tokens(planned['prompt_tokens_about'])}, by their {planned['characters']} characters",
        ),
    ]
    rows[1:1] = [("", f"{number} {reason}") for reason, number in planned["left_out"].items()]
    if planned["cost_at_most_about"] is not None:
        rows.append(("cost", f"{planned['cost_at_most_about']:.4g} at most, about"))
    print_rows(rows)


def show_report(found: dict[str, Any], given: Given) -> None:
    """What was asked and answered, what it cost, and what is missing and why."""
    questions, rows, tokens = found["questions"], found["rows"], found["tokens"]
    untold = tokens["answers_without_count"]
    lines: list[tuple[str, object]] = [
        ("rows", f"{rows['written']} in {Path(given['out']) / 'rows.jsonl'}"),
        ("answers", f"{questions['answered']} of {questions['distinct']}, {questions['answered_now']} of them now"),
        ("requests", _requests(found["requests"])),
        (
            "tokens",
            f"{units.tokens(tokens['prompt'])} in, {units.tokens(tokens['answer'])} out"
            + (f" ({untold} answers came without a count)" if untold else ""),
        ),
    ]
    if found["cost"] is not None:
        lines.append(("cost", f"{found['cost']:.4g}"))
    if "student" in found:
        fit = found["student"]
        lines.append(("targets", f"{fit['fitting']} rows fit the student's tokenizer, {fit['refused']} do not"))
        if fit["targets"]:
            lines.append(("cache", f"{Path(given['out']) / 'targets'} (train on the column student_text)"))
    lines.append(("seconds", found["seconds"]))
    print_rows(lines)
    for reason in list(found.get("student", {}).get("reasons", {}))[:3]:
        print(f"not the student's tokens: {reason}")
    _show_shortfall(found, given)


def _requests(requests: dict[str, Any]) -> str:
    retried = ", ".join(f"{kind} {times}" for kind, times in requests["retried_now"].items())
    return f"{requests['now']} now" + (f"; tried again: {retried}" if retried else "")


def _show_shortfall(found: dict[str, Any], given: Given) -> None:
    rows = found["rows"]
    if rows["failed"]:
        reasons = ", ".join(f"{kind} {times}" for kind, times in found["failures"]["reasons"].items())
        print(f"rows without an answer: {rows['failed']} ({reasons}), listed in {Path(given['out']) / 'failed.ndjson'}")
    if rows["left"]:
        why = {"interrupted": "interrupted", "max_cost": f"--max-cost {given.get('max_cost', 0):g}"}
        print(f"rows left to ask: {rows['left']} ({why.get(found['stopped'], found['stopped'])})")
    if rows["failed"] or rows["left"]:
        print("the same command with --resume asks those, and no prompt that was answered")


def show_taught(found: dict[str, Any], given: Given) -> None:
    """What would be asked, or what was."""
    _show_plan(found) if given.get("dry_run") else show_report(found, given)


def _exit_code(found: dict[str, Any], given: Given) -> int:
    if given.get("dry_run"):
        return 0
    if found["stopped"] == "interrupted":
        return INTERRUPTED
    return SHORTFALL if found["rows"]["failed"] or found["rows"]["left"] else 0


COMMAND = Command(train.teach, show_taught, to_json=lambda found, given: found, exit_code=_exit_code)
