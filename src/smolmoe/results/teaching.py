"""What a job at a teacher's endpoint would ask, and what it got."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from smolmoe.results.base import Result


@dataclass(frozen=True)
class TeachPlan:
    """What would be asked.

    Attributes:
        left_out: reason -> rows of the prompts' file.
        requests: prompts that differ, times samples.
        characters: of all requests; `prompt_tokens_about` is estimated from them.
        cost_at_most_about: in the currency of the prices; None without prices or `max_tokens`.
    """

    prompts: int
    left_out: dict[str, int]
    requests: int
    characters: int
    prompt_tokens_about: int
    cost_at_most_about: float | None


@dataclass(frozen=True)
class PromptFile:
    path: str
    sha256: str
    rows: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Questions:
    """Prompts that differ, times samples; `answers_of_other_prompts` are in the journal and in no row."""

    distinct: int
    answered: int
    failed: int
    left: int
    answered_now: int
    answers_of_other_prompts: int


@dataclass(frozen=True)
class Rows:
    """A row for each prompt and sample: written, without an answer, or not asked yet."""

    written: int
    failed: int
    left: int


@dataclass(frozen=True)
class Failures:
    """Rows without an answer: how many for each reason, and the first of them."""

    reasons: dict[str, int]
    first: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Requests:
    """Requests sent: in all calls, in this one, and those of this one that were repeated, by reason."""

    all: int
    now: int
    retried_now: dict[str, int]


@dataclass(frozen=True)
class Tokens:
    """As the endpoint counts them."""

    prompt: int
    answer: int
    answers_without_count: int


@dataclass(frozen=True)
class StudentFit:
    """How many answers have the student's tokens; `targets` describes the cache of these."""

    fitting: int
    refused: int
    reasons: dict[str, int]
    targets: dict[str, float] | None


class TeachReport(Result):
    """What was asked and answered, over all calls for one folder.

    Attributes:
        stopped: why rows are left: "interrupted" or "max_cost"; None if none are.
        cost: in the currency of the prices; None without prices.
        options: the recipe.
        student: None, and not written, if no student was given.
        seconds: of all calls.
    """

    kind: Literal["teach"] = "teach"
    prompts: PromptFile
    questions: Questions
    rows: Rows
    stopped: str | None
    finish_reasons: dict[str, int]
    failures: Failures
    requests: Requests
    tokens: Tokens
    cost: float | None
    options: dict[str, Any]
    versions: dict[str, str]
    student: StudentFit | None = None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        if self.student is None:
            del values["student"]
        return values
