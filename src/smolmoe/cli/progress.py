"""Progress of a command on stderr: one line that moves on a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from smolmoe.core import units
from smolmoe.core.progress import Progress

WINDOW = 30.0  # seconds over which the rate is measured
FEWEST = 4  # reports that the window keeps, however slow they are
KNOWN_AFTER = 2.0  # seconds until a rate is shown
EVERY = 30.0  # seconds between the lines of a log
SHARE = 0.05  # of a step's time, between the lines of a log
SHORT = 5.0  # seconds; the end of a shorter step is not a line of a log
START = "Starting"
LONGEST = 48  # characters of a name with a path in it, so that the amounts are seen
HEAD = 20  # of them from its beginning

_NAMES = {
    "plan": "Reading headers and planning",
    "router": "Reading the domains' text for the router",
    "predict": "Predicting errors on the dense model",
    "write": "Writing",
    "verify": "Reloading the files and measuring",
}
_IN_BYTES = ("write",)


@dataclass
class Step:
    """A step of the work.

    Attributes:
        seconds: while it was the current step; another step in between, such as a measurement, is not counted.
        marks: seconds and amount of its latest reports, for the rate.
    """

    what: str
    done: int = 0
    total: int = 0
    detail: str = ""
    seconds: float = 0.0
    marks: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def title(self) -> str:
        """The step as people read it; a pipeline's stage may stand before its name."""
        stage, separator, name = self.what.rpartition(": ")
        return stage + separator + _NAMES.get(name, name)

    @property
    def is_done(self) -> bool:
        return 0 < self.total <= self.done

    @property
    def _in_bytes(self) -> bool:
        return self.what.rpartition(": ")[2] in _IN_BYTES

    @property
    def amount(self) -> str:
        """E.g. "120/1,000", "63 MB of 1.2 GB"; empty if nothing is counted."""
        if self._in_bytes:
            return f"{units.size(self.done)} of {units.size(self.total)}" if self.total else ""
        if self.total:
            return f"{self.done:,}/{self.total:,}"
        return f"{self.done:,}" if self.done else ""

    @property
    def rate(self) -> float | None:
        """Amount per second over the last reports; None until it is known."""
        if len(self.marks) < 2:
            return None
        (begun, first), (ended, last) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - begun) if ended - begun >= KNOWN_AFTER and last > first else None

    def left(self, seconds: float) -> float | None:
        """Seconds until its end, after so many of it; None if that is not known."""
        rate = self.rate
        if rate is None or not self.total or self.is_done:
            return None
        return max(0.0, (self.total - self.done) / rate - (seconds - self.marks[-1][0]))

    def mark(self, done: int) -> None:
        """Take an amount for the rate."""
        if self.marks and done < self.marks[-1][1]:  # it starts again
            self.marks.clear()
            self.seconds = 0.0
        self.marks.append((self.seconds, done))
        while len(self.marks) > FEWEST and self.seconds - self.marks[1][0] >= WINDOW:
            self.marks.popleft()


class Steps:
    """The steps of a command and the line that shows the current one: a function of the reports and their times."""

    def __init__(self, now: float, what: str = START):
        self._steps = {what: Step(what)}
        self.current = self._steps[what]
        self._since = now

    def update(self, what: str, done: int, total: int, detail: str = "", *, now: float) -> Step:
        """Take a report."""
        self.current.seconds += now - self._since
        self._since = now
        step = self.current = self._steps.setdefault(what, Step(what))
        step.done, step.total, step.detail = done, total, detail or step.detail
        step.mark(done)
        return step

    def seconds(self, now: float) -> float:
        """Time of the current step."""
        return self.current.seconds + now - self._since

    def line(self, now: float) -> str:
        """The current step: name, amount, share, time left, and its detail or its rate."""
        step, seconds = self.current, self.seconds(now)
        left = step.left(seconds)
        share = f"{min(1.0, step.done / step.total):.0%}" if step.total else ""
        time_said = clock(seconds) if left is None else f"{clock(left)} left"
        title = step.title if len(step.title) <= LONGEST else f"{step.title[:HEAD]}…{step.title[HEAD + 1 - LONGEST :]}"
        return "  ".join(part for part in (title, step.amount, share, time_said, self._speed(step)) if part)

    @staticmethod
    def _speed(step: Step) -> str:
        rate = step.rate
        if step.detail or rate is None:
            return step.detail
        if step._in_bytes:
            return f"{units.size(rate)}/s"
        return f"{units.count(rate)}/s" if rate >= 1 else f"{units.duration(1 / rate)} each"


def clock(seconds: float) -> str:
    """As a clock shows it: "0:07", "1:05:30"."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class LogLines:
    """Which lines a log gets: one when a step starts, one now and then, one at the end of a long step."""

    def __init__(self, now: float, what: str = START):
        self.steps = Steps(now, what)
        self._begun: set[str] = set()
        self._ended: set[str] = set()
        self._said = now

    def begin(self, now: float) -> list[str]:
        """The line of the first step, unless it is named by its first report."""
        what = self.steps.current.what
        return [] if what == START else self.update(what, 0, 0, now=now)

    def update(self, what: str, done: int, total: int, detail: str = "", *, now: float) -> list[str]:
        """The lines for a report."""
        step = self.steps.update(what, done, total, detail, now=now)
        lines = []
        if what not in self._begun:
            self._begun.add(what)
            lines.append(f"{step.title} ...")
        if not step.is_done:
            self._ended.discard(what)
        elif what not in self._ended:
            self._ended.add(what)
            if step._in_bytes or step.seconds >= SHORT:
                parts = (step.title, step.amount, f"in {clock(step.seconds)}", self.steps._speed(step))
                lines.append("  ".join(part for part in parts if part))
        if lines:
            self._said = now
        return lines or self.tick(now)

    def tick(self, now: float) -> list[str]:
        """The line of a step that has been silent for long; the longer the step, the fewer the lines."""
        if now - self._said < max(EVERY, SHARE * self.steps.seconds(now)):
            return []
        self._said = now
        return [self.steps.line(now)]


def moves() -> bool:
    """Whether stderr can show a line that moves."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


@contextmanager
def progress(show: bool, what: str = START) -> Iterator[Progress | None]:
    """Progress of the work inside, on stderr; None if `show` is false.

    Args:
        what: shown until the first report.
    """
    if not show:
        yield None
    elif moves():
        with _moving_line(what) as report:
            yield report
    else:
        with _log(what) as report:
            yield report


@contextmanager
def _moving_line(what: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    lock, steps = threading.Lock(), Steps(time.monotonic(), what)

    def line() -> Text:
        with lock:
            return Text(steps.line(time.monotonic()), no_wrap=True, overflow="ellipsis")

    def report(what: str, done: int, total: int, detail: str = "", /) -> None:
        with lock:
            steps.update(what, done, total, detail, now=time.monotonic())

    # Messages on stderr go above the line. Results go to stdout, which may be a file: it is left alone.
    console = Console(stderr=True, highlight=False)
    with Live(console=console, get_renderable=line, transient=True, redirect_stdout=False):
        yield report


@contextmanager
def _log(what: str) -> Iterator[Progress]:
    lock, lines = threading.Lock(), LogLines(time.monotonic(), what)

    def say(take: Callable[[], list[str]]) -> None:
        with lock:
            for line in take():
                print(line, file=sys.stderr, flush=True)

    def report(what: str, done: int, total: int, detail: str = "", /) -> None:
        say(lambda: lines.update(what, done, total, detail, now=time.monotonic()))

    say(lambda: lines.begin(time.monotonic()))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            say(lambda: lines.tick(time.monotonic()))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield report
    finally:
        ended.set()
        watcher.join()
