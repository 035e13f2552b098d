"""Run a command as a whole process and measure it: wall time, CPU time, and memory of its process tree."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.010
MB = 1_000_000


@dataclass(frozen=True)
class Run:
    """One process from start to exit. Memory in bytes.

    Attributes:
        seconds, cpu_seconds: wall time, user + system time.
        anonymous: highest sampled sum of RssAnon over the process tree: what the process itself allocated.
        mapped: highest sampled sum of RssFile + RssShmem: pages of files, which the kernel can drop at any time.
        resident: the kernel's own high-water mark of the largest process (anonymous + mapped; nothing can slip between
            two samples here).
    """

    seconds: float
    cpu_seconds: float
    anonymous: int
    mapped: int
    resident: int


def run(command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> Run:
    """Run `command` with its output going to `log`; raise with the log's end if it fails."""
    with log.open("wb") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        sampler = _Sampler(process.pid)
        sampler.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.finish()
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(map(str, command))} exited with {process.returncode}:\n{tail}")
    return Run(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        anonymous=sampler.anonymous,
        mapped=sampler.mapped,
        resident=usage.ru_maxrss * 1024,
    )


def in_own_process(function: Callable[..., object], *arguments: object) -> None:
    """Call an importable function in a fresh process.

    What is run later inherits the high-water mark of the process that starts it, so this one has to stay small.
    """
    child = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{function.__name__}{arguments} failed")


class _Sampler(threading.Thread):
    """Reads the memory of a process and its descendants every `PERIOD` seconds (Linux's /proc)."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid = pid
        self.anonymous = 0
        self.mapped = 0
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(PERIOD):
            anonymous, mapped = _tree_memory(self.pid)
            self.anonymous = max(self.anonymous, anonymous)
            self.mapped = max(self.mapped, mapped)

    def finish(self) -> None:
        self._done.set()
        self.join()


def _tree_memory(pid: int, parent: tuple[str, str] | None = None) -> tuple[int, int]:
    """Bytes of (RssAnon, RssFile + RssShmem) of a process and its descendants; (0, 0) once it is gone.

    Args:
        parent: name and address space size of the process that started this one. A child that still has both is between
            fork and exec: its memory is its parent's, and must not count twice.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in status.splitlines())
    identity = (fields["Name"], fields.get("VmSize", ""))
    if identity == parent:
        return 0, 0
    anonymous, file, shared = (int(fields.get(name, "0").split()[0]) for name in ("RssAnon", "RssFile", "RssShmem"))
    trees = [(anonymous * 1024, (file + shared) * 1024), *(_tree_memory(child, identity) for child in children)]
    return sum(tree[0] for tree in trees), sum(tree[1] for tree in trees)


def _children(task: Path) -> list[int]:
    try:
        return [int(pid) for pid in (task / "children").read_text().split()]
    except OSError:
        return []
