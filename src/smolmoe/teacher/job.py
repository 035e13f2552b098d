"""A complete job: from prompts to rows and a report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from smolmoe.core.files import growing, place
from smolmoe.core.json_text import read_json
from smolmoe.core.progress import Progress
from smolmoe.data.tally import Tally
from smolmoe.data.tokens import end_of_text
from smolmoe.errors import EndpointError, OutputError
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.results.teaching import TeachPlan, TeachReport
from smolmoe.teacher import client
from smolmoe.teacher.client import Asking, cost
from smolmoe.teacher.endpoint import Answer, Endpoint, check_address, client_library
from smolmoe.teacher.journal import FILE, Journal
from smolmoe.teacher.logprobs import Mismatch, StudentTokens
from smolmoe.teacher.prompts import Prompt, Question, questions_of, read_prompts
from smolmoe.teacher.results import REPORT, ROWS, fit, write_results

STAGE = "Asking the teacher"
REFUSALS = 3  # answers that do not fit the student, none fitting, before the job ends
_CHARACTERS_A_TOKEN = 4  # of English text, roughly

logger = logging.getLogger(__name__)


def teach(
    recipe: TeachRecipe, *, resume: bool = False, report: Progress | None = None, first_wait: float = client.FIRST_WAIT
) -> TeachReport:
    """Ask an endpoint every prompt of a file, and write rows to train on; returns the report that is written.

    Every answer is on disk before it counts, so that a killed job can continue with `resume`: it does not repeat
    answered prompts, but those in progress at the kill and those that failed.

    Args:
        report: called with the stage, the number of settled questions and their total.
        first_wait: seconds before the second try of a prompt, doubled before each further one.

    Raises:
        RequestError, DataError, SourceError: prompts, options, student or address cannot be used; the openai package is
            not installed.
        EndpointError: the endpoint is down, refuses, or its answers lack something. Answers so far are kept.
        OutputError: the folder contains other answers, or cannot be written.
    """
    prompts, apart = _prompts(recipe)
    questions = list(questions_of(prompts, recipe))
    endpoint = Endpoint(recipe)
    student = _student(recipe.student) if recipe.student is not None else None
    with growing(recipe.out, lambda: _check_folder(recipe.out)):
        return _teach(recipe, prompts, questions, endpoint, student, apart, resume, report, first_wait)


def _teach(
    recipe: TeachRecipe,
    prompts: list[Prompt],
    questions: list[Question],
    endpoint: Endpoint,
    student: StudentTokens | None,
    apart: dict[str, int],
    resume: bool,
    report: Progress | None,
    first_wait: float,
) -> TeachReport:
    started = time.monotonic()
    journal = Journal.open(recipe.out / FILE, recipe.sampling(), resume=resume)
    try:
        before = _seconds_before(recipe.out) if journal.totals.entries else 0.0
        left = [question for question in questions if question.id not in journal.answered]
        job = Asking(
            endpoint,
            journal,
            recipe,
            examine=_Examiner(recipe, student),
            report=_progress(report, len(questions) - len(left), len(questions)),
            first_wait=first_wait,
        )
        tally = asyncio.run(_run(job, endpoint, left))
        seconds = before + time.monotonic() - started
        if journal.totals.entries:
            found = write_results(prompts, apart, journal, recipe, tally, student, seconds)
    finally:
        journal.close()
    if job.error is not None:
        raise job.error
    if not journal.totals.entries:
        raise KeyboardInterrupt  # before the first answer: there is nothing to report
    if journal.totals.untold:
        logger.warning("%d answers have no token count: the totals are too low", journal.totals.untold)
    return found


def plan(recipe: TeachRecipe) -> TeachPlan:
    """The questions and cost of `teach`; nothing is sent or written.

    Raises:
        RequestError, DataError, SourceError: as `teach`.
    """
    check_address(recipe.base_url)
    client_library()
    _check_folder(recipe.out)
    prompts, apart = _prompts(recipe)
    questions = list(questions_of(prompts, recipe))
    characters = sum(len(question.prompt) + len(recipe.system or "") for question in questions)
    at_most = None
    if recipe.max_tokens is not None:
        at_most = cost(characters // _CHARACTERS_A_TOKEN, recipe.max_tokens * len(questions), recipe)
    return TeachPlan(
        len(prompts), apart, len(questions), characters, characters // _CHARACTERS_A_TOKEN, cost_at_most_about=at_most
    )


def _prompts(recipe: TeachRecipe) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts, and the number of rows that are skipped or changed, by reason."""
    tally = Tally()
    prompts = read_prompts(recipe, tally)
    tally.log(str(recipe.prompts))
    return prompts, dict(tally.counts)


async def _run(job: Asking, endpoint: Endpoint, questions: list[Question]) -> client.Tally:
    try:
        return await job.run(questions)
    finally:
        await endpoint.close()


class _Examiner:
    """Ends a job early if its answers lack what the recipe needs."""

    def __init__(self, recipe: TeachRecipe, student: StudentTokens | None):
        self._recipe, self._student = recipe, student
        self._seen = self._refused = 0

    def __call__(self, question: Question, answer: Answer) -> None:
        self._seen += 1
        if self._recipe.max_cost is not None and answer.answer_tokens is None:
            raise self._missing("no token count", "max_cost", "Without it no cost limit can be enforced: remove it.")
        if self._recipe.top_logprobs is not None and answer.logprobs is None and self._seen == 1:
            raise self._missing("no log-probabilities", "top_logprobs", "Remove it, or use another endpoint.")
        if self._student is None:
            return
        try:
            fit(self._student, answer.text, answer.logprobs, self._recipe.top_logprobs or 0)
        except Mismatch as mismatch:
            self._refused += 1
            logger.info("row %d: tokens differ from the student's (%s)", question.row, mismatch)
            if self._refused == self._seen == REFUSALS:
                raise EndpointError(
                    f"the teacher's tokenizer differs from the student's ({mismatch}).",
                    field="student",
                    value=self._recipe.student,
                    fix="Omit `student` to keep the text, or use a teacher with the student's tokenizer.",
                ) from None

    def _missing(self, what: str, field: str, fix: str) -> EndpointError:
        return EndpointError(
            f"the endpoint returns {what} with its answers.", field=field, value=getattr(self._recipe, field), fix=fix
        )


def _student(name: str) -> StudentTokens:
    """The student's tokens, of a folder or a model on the hub."""
    from smolmoe.moe.loading import find_tokenizer

    found = find_tokenizer(name, field="student")
    end_of_text(found)
    return StudentTokens(found)


def _check_folder(out: Path) -> None:
    """Refuse to overwrite rows without a journal, which could not be written again."""
    place(out, "growing folder")
    if out.exists() and not out.is_dir():
        raise OutputError("a file of that name exists.", field="out", value=str(out), fix="Use a new folder.")
    if not (out / FILE).is_file() and any((out / name).exists() for name in (ROWS, REPORT)):
        raise OutputError(
            f"the folder contains rows, but not their journal ({FILE}).",
            field="out",
            value=str(out),
            fix="Use another folder.",
        )


def _progress(report: Progress | None, before: int, total: int) -> Callable[[int], None]:
    if report is None:
        return lambda settled: None
    report(STAGE, 0, total)
    return lambda settled: report(STAGE, before + settled, total)


def _seconds_before(out: Path) -> float:
    """The seconds of earlier calls, from their report; 0 without one."""
    try:
        return float(read_json(out / REPORT)["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
