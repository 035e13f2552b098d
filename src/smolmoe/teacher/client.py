"""Ask many questions concurrently, with limits and retries, until each is answered or has failed."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from smolmoe.errors import EndpointError
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.teacher.endpoint import SILENT, Answer, Endpoint, NoAnswer
from smolmoe.teacher.journal import Journal
from smolmoe.teacher.prompts import Question

FIRST_WAIT = 1.0  # seconds before the second try, doubled before each further one
LONGEST_WAIT = 60.0
LONGEST_ASKED = 600.0  # seconds; the job ends if the endpoint asks for a longer wait
FIRST_TRIES = 3  # before the first answer: an endpoint that is down must be reported soon
GIVEN_UP_IN_A_ROW = 10

INTERRUPTED = "interrupted"
MAX_COST = "max_cost"
ENDPOINT = "endpoint"

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts of one call.

    Attributes:
        answered, failed: questions.
        requests: sent, retries included.
        retried: retries, by reason.
        stopped: why questions are left, if any are.
    """

    answered: int = 0
    failed: int = 0
    requests: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    stopped: str | None = None


class _Stopped(Exception):  # noqa: N818 - a signal between the methods below
    """The job ends before this question was settled."""


class Asking:
    """The state of one job.

    Args:
        examine: checks each answer before it is kept; raises EndpointError if further ones would be useless.
        report: called with the number of settled questions.
        first_wait: seconds before the second try.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        journal: Journal,
        recipe: TeachRecipe,
        *,
        examine: Callable[[Question, Answer], None],
        report: Callable[[int], None],
        first_wait: float = FIRST_WAIT,
    ):
        self.tally = Tally()
        self.error: Exception | None = None
        self._endpoint, self._journal, self._recipe = endpoint, journal, recipe
        self._examine, self._report, self._first_wait = examine, report, first_wait
        self._stopping = asyncio.Event()
        self._under_way = 0
        self._given_up = 0  # in a row
        self._not_before = 0.0  # for all requests, if the endpoint asked for a pause
        self._next_slot = 0.0

    async def run(self, questions: Sequence[Question]) -> Tally:
        """Send them; settled questions are in the journal. `error` is set if the job ended because of a problem."""
        waiting = iter(questions)
        with self._interruptible():
            try:
                # One at a time until the first answer: a wrong key must cost one request only.
                while not self.tally.answered and await self._next(waiting):
                    pass
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self._recipe.concurrency, len(questions))):
                        group.create_task(self._work(waiting))
            except asyncio.CancelledError:
                if self.tally.stopped != INTERRUPTED:
                    raise
        return self.tally

    async def _work(self, waiting: Iterator[Question]) -> None:
        while await self._next(waiting):
            pass

    async def _next(self, waiting: Iterator[Question]) -> bool:
        """Settle one more question; false if none is left, or the job should end."""
        question = next(waiting, None)
        if question is None:
            return False
        self._mind_the_cost()
        if self._stopping.is_set():
            return False
        await self._settle(question)
        return True

    async def _settle(self, question: Question) -> None:
        """Ask until the question is answered or has failed, and record it; a stop leaves it unasked."""
        entry: dict[str, Any] = {"id": question.id, "tries": 0, "prompt_tokens": None, "answer_tokens": None}
        self._under_way += 1
        try:
            answer = await self._persist(question, entry)
            self._add_tokens(entry, answer)
            self._examine(question, answer)
            self._keep({**entry, "answer": asdict(answer)})
            self.tally.answered += 1
            self._given_up = 0
        except _Stopped:
            return
        except EndpointError as error:
            self._halt(ENDPOINT, error)
        except NoAnswer as problem:
            self._give_up(question, entry, problem)
        finally:
            self._under_way -= 1

    async def _persist(self, question: Question, entry: dict[str, Any]) -> Answer:
        tries = self._recipe.retries + 1
        for number in range(1, tries + 1):
            await self._turn()
            entry["tries"] = number
            self.tally.requests += 1
            try:
                return await self._endpoint.ask(question.prompt)
            except NoAnswer as problem:
                self._add_tokens(entry, problem)
                silent = not self.tally.answered and problem.kind in SILENT
                limit = min(tries, FIRST_TRIES) if silent else tries
                if not problem.again or number >= limit:
                    raise
                await self._back_off(question, problem, number, limit)
        raise AssertionError  # the last try returns or raises

    async def _back_off(self, question: Question, problem: NoAnswer, number: int, tries: int) -> None:
        wait = min(LONGEST_WAIT, self._first_wait * 2 ** (number - 1)) * random.uniform(0.5, 1.0)
        if problem.wait is not None:
            if problem.wait > LONGEST_ASKED:
                raise EndpointError(
                    f"the endpoint asks for a wait of {problem.wait:.0f} s ({problem.reason}).",
                    field="base_url",
                    value=self._recipe.base_url,
                    fix="Use `resume=True` to resume when it is ready again.",
                )
            # A little more than requested, with jitter.
            wait = problem.wait + self._first_wait * random.uniform(0, 0.5)
            self._not_before = max(self._not_before, time.monotonic() + problem.wait)
        self.tally.retried[problem.kind] += 1
        logger.info("row %d: %s; try %d of %d in %.1f s", question.row, problem.reason, number + 1, tries, wait)
        await self._sleep(wait)

    async def _turn(self) -> None:
        """Wait until the next request may be sent."""
        if self._recipe.requests_per_minute is not None:
            slot = max(self._next_slot, time.monotonic())
            self._next_slot = slot + 60 / self._recipe.requests_per_minute
            await self._sleep(slot - time.monotonic())
        while (pause := self._not_before - time.monotonic()) > 0:
            await self._sleep(pause)
        if self._stopping.is_set():
            raise _Stopped

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake when the job ends."""
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise _Stopped

    def _give_up(self, question: Question, entry: dict[str, Any], problem: NoAnswer) -> None:
        # Answers of an earlier call prove the options; without one in this call the endpoint may be down.
        unproven = not self._journal.answered or problem.kind == SILENT[1]
        if unproven and not self.tally.answered and not problem.own:
            tries = f" after {entry['tries']} tries" if problem.again else ""
            self._halt(ENDPOINT, self._no_use(f"the endpoint does not answer{tries} ({problem.reason})."))
            return
        self._keep({**entry, "failure": {"reason": problem.reason, "kind": problem.kind}})
        self.tally.failed += 1
        logger.info("row %d: given up (%s)", question.row, problem.reason)
        if not problem.again:
            return
        self._given_up += 1
        if self._given_up >= max(GIVEN_UP_IN_A_ROW, self._recipe.concurrency):
            said = f"{self._given_up} prompts in a row got no answer; the last reason: {problem.reason}."
            self._halt(ENDPOINT, self._no_use(said))

    def _no_use(self, message: str) -> EndpointError:
        return EndpointError(
            message,
            field="base_url",
            value=self._recipe.base_url,
            fix="Check that it runs and accepts these options; `resume=True` resumes from the answers so far.",
        )

    def _keep(self, entry: dict[str, Any]) -> None:
        self._journal.add(entry)
        self._report(self.tally.answered + self.tally.failed + 1)

    @staticmethod
    def _add_tokens(entry: dict[str, Any], told: Answer | NoAnswer) -> None:
        """Add the tokens of a try, which a failed one may have cost, too."""
        for name in ("prompt_tokens", "answer_tokens"):
            if (count := getattr(told, name)) is not None:
                entry[name] = (entry[name] or 0) + count

    def _mind_the_cost(self) -> None:
        """Stop if one more answer, at the mean price so far, would exceed the limit."""
        limit, totals = self._recipe.max_cost, self._journal.totals
        if limit is None or not totals.entries:
            return
        spent = cost(totals.prompt_tokens, totals.answer_tokens, self._recipe) or 0.0
        if spent + spent / totals.entries * (self._under_way + 1) > limit:
            self._halt(MAX_COST)

    def _halt(self, why: str, error: Exception | None = None) -> None:
        """Start no more requests; wait for those in progress, since they are paid for."""
        if not self._stopping.is_set():
            self.tally.stopped, self.error = why, error
            self._stopping.set()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the job after the requests in progress; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, job = asyncio.get_running_loop(), asyncio.current_task()
        assert job is not None

        def interrupt() -> None:
            if self._stopping.is_set():
                self.tally.stopped = INTERRUPTED
                job.cancel()
            else:
                logger.warning("stopping: waiting for %d requests (Ctrl-C again to abort)", self._under_way)
                self._halt(INTERRUPTED)

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def cost(prompt_tokens: int, answer_tokens: int, recipe: TeachRecipe) -> float | None:
    """The cost of tokens; None without a price."""
    if recipe.price_in is None and recipe.price_out is None:
        return None
    return (prompt_tokens * (recipe.price_in or 0.0) + answer_tokens * (recipe.price_out or 0.0)) / 1e6
