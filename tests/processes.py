"""Processes that tests start: forked from one that has imported torch and transformers, and waited for by what they do.

Importing takes most of the time of such a process, so that each worker of pytest does it once, in a server that forks
(`multiprocessing`'s) and that never imports smolmoe. No test goes by the clock: it waits for an event or an end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

PATIENCE = float(os.environ.get("SMOLMOE_TEST_PATIENCE", "1800"))  # seconds, against what hangs; no machine is so slow
_IMPORTED = ("llama.modeling_llama", "mixtral.modeling_mixtral", "gpt2.modeling_gpt2")

# Put before code that is to be run without it: importing smolmoe fails.
NO_SMOLMOE = """
import sys
class _NoSmolmoe:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "smolmoe":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, _NoSmolmoe())
"""

forking = multiprocessing.get_context("forkserver")
forking.set_forkserver_preload(
    ["torch", "openai", "transformers", "transformers.trainer", *(f"transformers.models.{name}" for name in _IMPORTED)]
)


class Process(Protocol):
    """What this module's waiting needs: a `Child`, or a `subprocess.Popen`."""

    def poll(self) -> int | None: ...


def wait_until(happened: Callable[[], object], process: Process) -> None:
    """Wait for what a process brings about; that it ends without is a failure."""
    limit = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None or happened(), f"it ended before that, with {process.poll()}"
        assert time.monotonic() < limit, "it hangs"
        time.sleep(0.002)


def killed_in(function: str, call: int, *, later: int = 0) -> str:
    """Code to put before other code: its process kills itself within the call of that number of `module:function`.

    Args:
        later: calls of any function after that, Python's or not, before it does.
    """
    module, _, path = function.partition(":")
    return f"""
import importlib, os, signal, sys
owner, *rest = importlib.import_module({module!r}), *{path.split(".")!r}
for name in rest[:-1]:
    owner = getattr(owner, name)
real, left = getattr(owner, rest[-1]), [{call}, {later}]
def kill(*_):
    left[1] -= 1
    if left[1] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
        sys.setprofile(kill)
    return real(*args, **kwargs)
setattr(owner, rest[-1], counted)
"""


class Child:
    """Python code in a process of its own, as `python -c` runs it, which ends with the block that it is used in.

    Attributes:
        returncode: None until it has ended; of a signal, its number below zero.
    """

    def __init__(self, code: str, *arguments: object, env: dict[str, str] | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="child-")
        place = Path(self._folder.name)
        self._files = place / "stdout", place / "stderr"
        # The server's surroundings are of when it was started.
        values = [str(argument) for argument in arguments], os.getcwd(), {**os.environ, **(env or {})}
        self._process = forking.Process(target=_run, args=(code, *values, [str(file) for file in self._files]))
        self._process.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._folder.cleanup()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._files[0].read_text(encoding="utf-8") if self._files[0].exists() else ""

    @property
    def stderr(self) -> str:
        return self._files[1].read_text(encoding="utf-8") if self._files[1].exists() else ""

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> int | None:
        if self._process.exitcode is None:
            self._process.kill()
        return self.wait()

    def wait(self) -> int | None:
        """How it ended."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"it hangs\n{self.stderr}"
        return self._process.exitcode


def run(code: str, *arguments: object, env: dict[str, str] | None = None) -> str:
    """What the code prints to stdout. It has to end well."""
    with Child(code, *arguments, env=env) as child:
        assert child.wait() == 0, child.stderr
        return child.stdout


def run_ranks(code: str, *arguments: object) -> list[str]:
    """What each of two processes that can meet (`RANK`, `MASTER_PORT`, ...) prints. Where one fails, both end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    of_rank = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    with Child(code, *arguments, env=of_rank[0]) as first, Child(code, *arguments, env=of_rank[1]) as second:
        ranks = (first, second)
        limit = time.monotonic() + PATIENCE
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            assert time.monotonic() < limit, "they hang"
            time.sleep(0.01)
        assert [rank.poll() for rank in ranks] == [0, 0], "\n\n".join(rank.stderr for rank in ranks)
        return [rank.stdout for rank in ranks]


def _run(code: str, arguments: Sequence[str], folder: str, env: dict[str, str], files: Sequence[str]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    # As in a process that was started from a shell: what the server has set is not theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (1, 2):
        stream = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8")
        setattr(sys, ("stdout", "stderr")[number - 1], stream)
    sys.argv = ["-c", *arguments]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    try:
        exec(compile(code, "<child>", "exec"), {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
