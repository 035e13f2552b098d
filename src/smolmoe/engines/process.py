"""The engine's process: the Python that has it, a time limit, and the last lines of what it printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from smolmoe.core.files import expanded
from smolmoe.errors import RequestError

FOLDER = "SMOLMOE_ENGINES"  # holds one environment per engine, as `make engines` makes them
READY = ".ready"  # in an environment that `make engines` has finished
DRIVER = Path(__file__).parent / "runners" / "driver.py"
# -I: the engine sees neither the folder of the driver, whose files are named as the engines, nor this Python's path.
# The others: what it printed and where it was is kept if it crashes.
FLAGS = ("-I", "-u", "-X", "faulthandler")
LAST_LINES = 8


@dataclass(frozen=True)
class Answer:
    """What an engine's process gave.

    Attributes:
        found: what the driver wrote, see `runners.driver`; its "stage" is "ended" or "late" where it wrote nothing.
        last_lines: of its output.
    """

    found: Mapping[str, Any]
    last_lines: tuple[str, ...]


def find_python(engine: str, runner: ModuleType, python: str | Path | None) -> Path:
    """The Python to run an engine with.

    Args:
        python: the executable or its environment's folder; None for the runner's variable, then the folder of
            `make engines`, then this Python if it has the engine.

    Raises:
        RequestError: no Python on this machine has the engine.
    """
    named = python or os.environ.get(runner.VARIABLE)
    fix = f"Install it with `make engines` or {runner.INSTALL}, and give `python=PATH` or set {runner.VARIABLE}."
    if named:
        path = expanded(named)
        program = shutil.which(path / "bin" / "python" if path.is_dir() else path)
        if program is None:
            field = "python" if python else runner.VARIABLE
            raise RequestError("is not a Python that can be run.", field=field, value=str(named), fix=fix)
        return Path(program).absolute()  # not resolved: an environment's Python is a link
    made = engine_folder(engine) / "bin" / "python"
    if made.is_file() and (engine_folder(engine) / READY).is_file():
        return made
    if find_spec(runner.MODULE) is not None:
        return Path(sys.executable)
    raise RequestError("no Python with this engine was found.", field="engine", value=engine, fix=fix)


def engine_folder(engine: str) -> Path:
    """Where `make engines` puts an engine's environment."""
    return expanded(os.environ.get(FOLDER) or ".engines").absolute() / engine


def run_engine(python: Path, runner: ModuleType, job: Mapping[str, Any], timeout: float) -> Answer:
    """Run the driver in the engine's Python. Nothing of its process group outlives the call.

    Raises:
        RequestError: it is not a Python.
    """
    with tempfile.TemporaryDirectory(prefix="smolmoe-engine-") as folder:
        asked, answer, log = (Path(folder) / name for name in ("job.json", "answer.json", "log.txt"))
        asked.write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), *FLAGS, str(DRIVER), str(runner.__file__), str(asked), str(answer)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "TMPDIR": folder}
        with log.open("wb") as sink:
            ended = _wait(command, sink, folder, environment, timeout)
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        last = tuple(line for line in lines if line)[-LAST_LINES:]
        if answer.is_file():
            return Answer(json.loads(answer.read_text(encoding="utf-8")), last)
        if ended is None:
            return Answer({"stage": "late", "error": f"no result within {timeout:g} s"}, last)
        return Answer({"stage": "ended", "error": f"its process ended with {_said(ended)} and no result"}, last)


def _wait(command: list[str], sink: Any, folder: str, environment: dict[str, str], timeout: float) -> int | None:
    """The exit code; None after the time limit."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": sink, "start_new_session": True}
    try:
        process = subprocess.Popen(command, cwd=folder, env=environment, **options)
    except OSError as error:
        raise RequestError(f"cannot be run: {error.strerror}.", field="python", value=command[0]) from error
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _said(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
