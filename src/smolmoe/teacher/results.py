"""The output of a job: rows in the prompts' order, failed prompts, log-probabilities, a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from smolmoe.core.files import replacing
from smolmoe.core.json_text import json_line
from smolmoe.core.provenance import versions
from smolmoe.data.forms import dialogue
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.results.teaching import (
    Failures,
    PromptFile,
    Questions,
    Requests,
    Rows,
    StudentFit,
    TeachReport,
    Tokens,
)
from smolmoe.teacher.client import Tally, cost
from smolmoe.teacher.journal import Journal
from smolmoe.teacher.logprobs import Mismatch, StudentTokens, Targets
from smolmoe.teacher.prompts import Prompt, digest_of, identity
from smolmoe.teacher.targets import TargetWriter

ROWS = "rows.jsonl"
REPORT = "report.json"
# Not .jsonl: training reads the folder's .jsonl files, and only the rows are text.
FAILED = "failed.ndjson"
LOGPROBS = "logprobs.ndjson"
STUDENT_TEXT = "student_text"  # column: the answer if it has targets, else empty, which training skips
_SHOWN = 10  # failures and mismatches in the report; the files have all


def write_results(
    prompts: list[Prompt],
    left_out: dict[str, int],
    journal: Journal,
    recipe: TeachRecipe,
    tally: Tally,
    student: StudentTokens | None,
    seconds: float,
) -> TeachReport:
    """Write the files into the recipe's folder, each renamed into place when complete; returns the report.

    Args:
        left_out: rows of the prompts' file, by reason.
        seconds: of all calls.
    """
    results = _Results(journal, recipe, student, digest_of(prompts))
    files = [ROWS, FAILED, *([LOGPROBS] if recipe.top_logprobs is not None else [])]
    with _written({name: recipe.out / name for name in files}) as streams:
        for prompt in prompts:
            for sample in range(recipe.samples):
                results.add(prompt, sample, streams)
    targets = results.targets.finish() if results.targets is not None else None
    report = results.report(prompts, left_out, tally, targets, seconds)
    report.write(recipe.out / REPORT)
    return report


class _Results:
    """Totals of the rows as they are written."""

    def __init__(self, journal: Journal, recipe: TeachRecipe, student: StudentTokens | None, prompts: str):
        self._journal, self._recipe, self._student, self._prompts = journal, recipe, student, prompts
        self._rows: Counter[str] = Counter()
        self._distinct: Counter[str] = Counter()
        self._finish: Counter[str] = Counter()
        self._failures: list[dict[str, Any]] = []
        self._mismatches: Counter[str] = Counter()
        self._used: set[str] = set()
        self.targets: TargetWriter | None = None
        if student is not None:
            assert recipe.top_logprobs is not None  # the recipe checks it
            teacher = {"model": recipe.model, "base_url": recipe.base_url, "prompts": prompts}
            self.targets = TargetWriter(recipe.out, student.tokenizer, recipe.top_logprobs, teacher)

    def add(self, prompt: Prompt, sample: int, streams: Mapping[str, IO[str]]) -> None:
        """Write the results of one row."""
        name = identity(prompt.text, sample, self._recipe)
        first = name not in self._used
        self._used.add(name)
        if name in self._journal.answered:
            state, answer = "answered", self._journal.get(name)["answer"]
            row = row_of(prompt, sample, answer)
            if self._recipe.top_logprobs is not None:
                about = {"row": prompt.row, "sample": sample, "response": answer["text"], "tokens": answer["logprobs"]}
                fitting = self._fitting(answer)
                streams[LOGPROBS].write(json_line(about | fitting))
                if self.targets is not None:
                    row[STUDENT_TEXT] = fitting.get("text", "")
            streams[ROWS].write(json_line(row))
            self._finish[str(answer["finish_reason"])] += first
        elif name in self._journal.failed:
            state, entry = "failed", self._journal.get(name)
            failure = {"row": prompt.row, "sample": sample, "prompt": prompt.text, "tries": entry["tries"]}
            self._failures.append({**failure, **entry["failure"]})
            streams[FAILED].write(json_line(self._failures[-1]))
        else:
            state = "left"
        self._rows[state] += 1
        self._distinct[state] += first

    def _fitting(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The student's ids for an answer's log-probabilities, or the reason for their absence."""
        if self._student is None or self.targets is None:
            return {}
        try:
            found = fit(self._student, answer["text"], answer["logprobs"], self._recipe.top_logprobs or 0)
            self.targets.add(found, answer["finish_reason"])
        except Mismatch as mismatch:
            self._mismatches[str(mismatch)] += 1
            return {"refused": str(mismatch)}
        return {
            "text": found.text,
            "ids": found.ids,
            "candidate_ids": found.candidates,
            "candidate_logprobs": found.logprobs,
        }

    def report(
        self,
        prompts: list[Prompt],
        left_out: dict[str, int],
        tally: Tally,
        targets: dict[str, Any] | None,
        seconds: float,
    ) -> TeachReport:
        """The content of `report.json`."""
        totals, reasons = self._journal.totals, Counter(failure["kind"] for failure in self._failures)
        shown = ({**failure, "prompt": failure["prompt"][:200]} for failure in self._failures[:_SHOWN])
        distinct, rows = self._distinct, self._rows
        return TeachReport(
            prompts=PromptFile(str(self._recipe.prompts), self._prompts, len(prompts), left_out),
            questions=Questions(
                len(self._used),
                distinct["answered"],
                distinct["failed"],
                distinct["left"],
                answered_now=tally.answered,
                answers_of_other_prompts=len(self._journal.answered.keys() - self._used),
            ),
            rows=Rows(rows["answered"], rows["failed"], rows["left"]),
            stopped=tally.stopped,
            finish_reasons=dict(self._finish),
            failures=Failures(dict(reasons.most_common()), tuple(shown)),
            requests=Requests(totals.tries, tally.requests, dict(tally.retried.most_common())),
            tokens=Tokens(totals.prompt_tokens, totals.answer_tokens, totals.untold),
            cost=cost(totals.prompt_tokens, totals.answer_tokens, self._recipe),
            options=self._recipe.model_dump(mode="json"),
            versions=versions("openai"),
            student=None if self._student is None else self._fit(targets),
            seconds=round(seconds, 3),
        )

    def _fit(self, targets: dict[str, Any] | None) -> StudentFit:
        refused = sum(self._mismatches.values())
        about = targets and {name: targets[name] for name in ("documents", "tokens", "bytes_per_token")}
        return StudentFit(self._rows["answered"] - refused, refused, dict(self._mismatches.most_common(_SHOWN)), about)


def row_of(prompt: Prompt, sample: int, answer: dict[str, Any]) -> dict[str, Any]:
    """A row for training: the prompt's columns, the answer, and `text`, a dialogue of both.

    A column of the prompts' file with the name of a result is kept as `given_...`.
    """
    result = {
        "text": dialogue([("user", prompt.text.strip()), ("assistant", answer["text"].strip())]),
        "prompt": prompt.text,
        "response": answer["text"],
        "model": answer["model"],
        "finish_reason": answer["finish_reason"],
        "sample": sample,
        "prompt_tokens": answer["prompt_tokens"],
        "answer_tokens": answer["answer_tokens"],
    }
    given = {
        f"given_{name}" if name in result else name: value
        for name, value in prompt.columns.items()
        if not (name in result and value in (prompt.text, result[name]))
    }
    return {**given, **result}


def fit(student: StudentTokens, response: str, logprobs: list[list[Any]] | None, least: int) -> Targets:
    """`StudentTokens.match`; an answer must have log-probabilities, and `least` candidates for each token."""
    if logprobs is None:
        raise Mismatch("the endpoint returned no log-probabilities")
    if (fewest := min((len(entry[3]) for entry in logprobs), default=0)) < least:
        raise Mismatch(f"{fewest} candidates of a token instead of {least}")
    return student.match(response, logprobs)


@contextmanager
def _written(files: dict[str, Path]) -> Iterator[Mapping[str, IO[str]]]:
    """Temporary files, renamed into place at the end."""
    with ExitStack() as places, ExitStack() as opened:
        partial = {name: places.enter_context(replacing(path)) for name, path in files.items()}
        yield {name: opened.enter_context(path.open("w", encoding="utf-8")) for name, path in partial.items()}
