"""How work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What is called as work progresses."""

    def __call__(self, what: str, done: int, total: int, detail: str = "", /) -> None:
        """Take one report.

        Args:
            what: name of the step.
            done, total: amount done, and the total amount; 0 if unknown.
            detail: what else is known, such as the loss of a training.
        """


def silent(what: str, done: int, total: int, detail: str = "", /) -> None:
    """Progress that is not shown."""


def within(report: Progress, title: str) -> Progress:
    """Progress of a part: the title stands before the name of each of its steps."""

    def told(what: str, done: int, total: int, detail: str = "", /) -> None:
        report(f"{title}{what}", done, total, detail)

    return told
