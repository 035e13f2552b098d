"""data teach, data fetch: text from a teacher over HTTP, and from known data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.output import Json, print_json, print_rows, progress, quiet_libraries, table, tell
from smolmoe.core import units

if TYPE_CHECKING:
    from smolmoe.recipe.teach import TeachRecipe

SHORTFALL = 1
INTERRUPTED = 130


def teach(
    prompts: Annotated[
        Path, typer.Option(help="Prompts: a file or folder of rows, or .txt with a prompt a paragraph.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for rows.jsonl, report.json and the journal.")],
    base_url: Annotated[str, typer.Option(help="Of an OpenAI-compatible endpoint, e.g. http://localhost:8000/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    system: Annotated[str | None, typer.Option(help="System prompt before every prompt.")] = None,
    prompt_column: Annotated[str, typer.Option(help="Column that holds the prompts.")] = "prompt",
    samples: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer, at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the sampling.  [default: the endpoint's]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass to sample from.")] = None,
    top_logprobs: Annotated[
        int | None, typer.Option(help="Log-probabilities to take for each token, where the endpoint gives them.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="Model whose tokenizer the log-probabilities must fit: a folder or a hub id.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once, at most.")] = 8,
    requests_per_minute: Annotated[float | None, typer.Option(help="Requests to send a minute, at most.")] = None,
    price_in: Annotated[float | None, typer.Option(help="Price of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million answer tokens.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop before the folder has cost more than this.")] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the key.")] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Further tries for a prompt that got no answer.")] = 5,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that holds answers.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be asked; send and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have a model behind an OpenAI-compatible endpoint answer prompts, and write rows to train on."""
    quiet_libraries()
    from smolmoe.recipe.base import parse
    from smolmoe.recipe.teach import TeachRecipe
    from smolmoe.teacher.job import plan
    from smolmoe.teacher.job import teach as ask

    options = {
        "prompts": prompts,
        "out": out,
        "base_url": base_url,
        "model": model,
        "system": system,
        "prompt_column": prompt_column,
        "samples": samples,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_logprobs": top_logprobs,
        "student": student,
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "price_in": price_in,
        "price_out": price_out,
        "max_cost": max_cost,
        "api_key_env": api_key_env,
        "timeout": timeout,
        "retries": retries,
    }
    recipe = parse(TeachRecipe, options)
    if dry_run:
        planned = plan(recipe)
        print_json(planned) if as_json else _show_plan(planned)
        return
    with progress(not as_json) as report, tell(not as_json):
        found = ask(recipe, resume=resume, report=report)
    print_json(found) if as_json else show_report(found, recipe)
    if found["stopped"] == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if found["rows"]["failed"] or found["rows"]["left"]:
        raise typer.Exit(SHORTFALL)


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


def show_report(found: dict[str, Any], recipe: TeachRecipe) -> None:
    """What was asked and answered, what it cost, and what is missing and why."""
    questions, rows, tokens = found["questions"], found["rows"], found["tokens"]
    untold = tokens["answers_without_count"]
    lines: list[tuple[str, object]] = [
        ("rows", f"{rows['written']} in {recipe.out / 'rows.jsonl'}"),
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
            lines.append(("cache", f"{recipe.out / 'targets'} (train on the column student_text)"))
    lines.append(("seconds", found["seconds"]))
    print_rows(lines)
    for reason in list(found.get("student", {}).get("reasons", {}))[:3]:
        print(f"not the student's tokens: {reason}")
    _show_shortfall(found, recipe)


def _requests(requests: dict[str, Any]) -> str:
    retried = ", ".join(f"{kind} {times}" for kind, times in requests["retried_now"].items())
    return f"{requests['now']} now" + (f"; tried again: {retried}" if retried else "")


def _show_shortfall(found: dict[str, Any], recipe: TeachRecipe) -> None:
    rows = found["rows"]
    if rows["failed"]:
        reasons = ", ".join(f"{kind} {times}" for kind, times in found["failures"]["reasons"].items())
        print(f"rows without an answer: {rows['failed']} ({reasons}), listed in {recipe.out / 'failed.ndjson'}")
    if rows["left"]:
        why = {"interrupted": "interrupted", "max_cost": f"--max-cost {recipe.max_cost:g}" if recipe.max_cost else ""}
        print(f"rows left to ask: {rows['left']} ({why.get(found['stopped'], found['stopped'])})")
    if rows["failed"] or rows["left"]:
        print("the same command with --resume asks those, and no prompt that was answered")


def fetch(
    preset: Annotated[
        str | None, typer.Argument(metavar="[PRESET]", help="Its name; without it, all are shown.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the rows and provenance.json.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to write, at most.  [default: all]")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.  [default: the preset's]")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag.  [default: the newest]")] = None,
    accept_licence: Annotated[
        str | None, typer.Option(help="Name the licence of a data set that is not free for every use, to take it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in a folder that is not finished.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the presets.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a known data set as rows to train on, or show which there are."""
    quiet_libraries()
    from smolmoe.data.fetch import catalogue
    from smolmoe.data.fetch import fetch as fetch_rows
    from smolmoe.errors import RequestError

    if show or preset is None:
        known = catalogue()
        print_json(known) if as_json else _show_catalogue(known)
        return
    if out is None:
        raise RequestError("say where the rows go.", field="out", fix="Add --out DIR.")
    with progress(not as_json) as report, tell(not as_json):
        found = fetch_rows(
            preset,
            out,
            rows=rows,
            split=split,
            revision=revision,
            accept_licence=accept_licence,
            resume=resume,
            report=report,
        )
    if as_json:
        print_json(found)
        return
    domains = ", ".join(f"{name} {number}" for name, number in found["domains"].items())
    print_rows(
        [
            ("rows", f"{found['rows']} ({domains}) in {out}"),
            ("licence", found["licence"]),
            *(("left out", f"{number} rows: {reason}") for reason, number in found["left_out"].items()),
            ("columns", ", ".join(found["columns"])),
            ("to train on it", f"data.sources: [{{path: {out}}}]"),
        ]
    )


def _show_catalogue(known: list[dict[str, Any]]) -> None:
    columns = ["preset", "data set", "licence", "rows", "columns"]
    rows = [
        [
            entry["preset"],
            entry["path"] + (f" ({entry['name']})" if entry["name"] else ""),
            entry["licence"] + ("" if entry["free"] else " (ask: --accept-licence)"),
            units.count(entry["size"]),
            ", ".join(entry["columns"]),
        ]
        for entry in known
    ]
    table("Presets (rows: about, of the split that is taken)", columns, rows)
