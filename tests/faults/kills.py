"""A process that is killed at a chosen point: at one of its own file operations, or after so much processor time.

Neither depends on how fast the machine is. Both end the process as SIGKILL does: no handler, no clean-up.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PRELOADED = ["torch", "transformers", "trl", "openai"]
PRELOADED += ["smolmoe.training.run", "smolmoe.alignment.run", "tests.faults.jobs"]
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.")


@dataclass(frozen=True)
class Point:
    """Where a process dies: before its `operation`-th change of a file below its folder, or after `seconds` of work."""

    operation: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Ran:
    """What a process did until its end: changes of files, processor seconds; and whether it was killed."""

    operations: int
    seconds: float
    killed: bool


def run(target: Callable[..., Any], folder: str, *arguments: Any, point: Point | None = None) -> Ran:
    """Call `target(folder, *arguments)` in a process of its own that dies at `point`.

    Raises:
        AssertionError: it ended in another way than by the kill or by itself.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    told = context.SimpleQueue()
    process = context.Process(target=_child, args=(told, point or Point(), folder, target, arguments))
    process.start()
    process.join()
    killed = process.exitcode in (-signal.SIGKILL, -signal.SIGPROF)
    assert killed or process.exitcode == 0, f"{target.__name__} ended with {process.exitcode}"
    assert not killed or point is not None
    operations, seconds = (0, 0.0) if killed else told.get()
    return Ran(operations, seconds, killed)


def _child(told: Any, point: Point, folder: str, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    count = 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if _changes_a_file(event, details) and str(details[0]).startswith(folder):
            count += 1
            if count == point.operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    started = time.process_time()
    if point.seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, point.seconds)
    target(folder, *arguments)
    signal.setitimer(signal.ITIMER_PROF, 0)
    told.put((count, time.process_time() - started))


def _changes_a_file(event: str, details: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event.startswith(_CHANGES) and bool(details)
