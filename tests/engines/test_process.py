"""Finding an engine's Python, and what its process may do: be absent, too old, fail, crash, hang, print."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from smolmoe.engines.process import Answer, find_python, run_engine
from smolmoe.engines.registry import ENGINES, runner_of
from smolmoe.engines.run import check_engine
from smolmoe.errors import RequestError

HERE = Path(sys.executable)
HEAD = 'MODULE, PACKAGES, AT_LEAST, INSTALL = "pytest", ("pytest",), "8", "pip install pytest"\n'


def runner(folder: Path, code: str) -> ModuleType:
    """An engine's file, as in `engines.runners`."""
    path = folder / "engine.py"
    path.write_text(HEAD + code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("engine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_of(folder: Path, code: str, timeout: float = 60) -> Answer:
    return run_engine(HERE, runner(folder, code), {"model": "m"}, timeout)


def test_what_the_runner_finds_comes_back(tmp_path: Path) -> None:
    code = "def load(job): return job['model']\ndef measure(model, job): return {'log_probs': [[model == 'm']]}"
    found = answer_of(tmp_path, code).found
    assert (found["stage"], found["log_probs"], found["version"]) == ("done", [[True]], pytest.__version__)


@pytest.mark.parametrize(
    ("code", "stage", "error"),
    [
        ("def load(job): raise ValueError('no such class')", "load", "ValueError: no such class"),
        ("def load(job): pass\ndef measure(model, job): 1 / 0", "run", "ZeroDivisionError: division by zero"),
        ("def load(job): import os; os.abort()", "ended", "its process ended with signal SIGABRT and no result"),
        ("def load(job): raise SystemExit(3)", "ended", "its process ended with exit code 3 and no result"),
    ],
)
def test_a_failure_says_where_and_why(code: str, stage: str, error: str, tmp_path: Path) -> None:
    answer = answer_of(tmp_path, "print('one')\nprint('two')\n" + code)
    assert answer.found["stage"] == stage
    assert answer.found["error"] == error
    assert ("two" if stage == "ended" else error) in answer.last_lines


def test_an_engine_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, pathlib\n"
        f"note = pathlib.Path({str(tmp_path / 'child')!r})\n"
        "def load(job):\n"
        "    print('loading', flush=True)\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    note.write_text(str(child.pid))\n"
        "    time.sleep(600)\n"
    )
    answer = answer_of(tmp_path, code, timeout=3)
    assert answer.found == {"stage": "late", "error": "no result within 3 s"}
    assert answer.last_lines == ("loading",)
    child = int((tmp_path / "child").read_text())
    limit = time.monotonic() + 60
    while running(child):
        assert time.monotonic() < limit, "the engine's child is still there"
        time.sleep(0.01)


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_engine_that_is_too_old_is_refused(tmp_path: Path) -> None:
    module = runner(tmp_path, "AT_LEAST = '999.1'")
    answer = run_engine(HERE, module, {}, 60)
    assert answer.found == {"version": pytest.__version__, "stage": "old"}
    with pytest.raises(RequestError, match=r"too old: 999.1 or newer") as caught:
        check_engine("pytest", module, HERE, answer)
    assert "pip install pytest" in str(caught.value.fix)


def test_a_python_without_the_engine_is_refused(tmp_path: Path) -> None:
    module = runner(tmp_path, "PACKAGES = ('no-such-engine',)")
    answer = run_engine(HERE, module, {}, 60)
    with pytest.raises(RequestError, match="does not have absent"):
        check_engine("absent", module, HERE, answer)


def test_the_engines_python_sees_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "def load(job): import sys; print(sys.path); raise ValueError(str(sys.path))"
    said = answer_of(tmp_path, code).found["error"]
    assert str(tmp_path) not in said
    assert "runners" not in said  # whose files have the names of the engines


@pytest.mark.parametrize("engine", ENGINES)
def test_a_python_is_found_in_order(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = runner_of(engine)
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.setenv("SMOLMOE_ENGINES", str(tmp_path))
    if importlib.util.find_spec(module.MODULE) is not None:
        assert find_python(engine, module, None) == HERE
    else:
        with pytest.raises(RequestError, match="no Python with this engine") as caught:
            find_python(engine, module, None)
        assert "make engines" in str(caught.value.fix)
        assert module.INSTALL in str(caught.value.fix)
    made = tmp_path / engine / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.symlink_to(HERE)
    if importlib.util.find_spec(module.MODULE) is None:  # half made
        with pytest.raises(RequestError, match="no Python with this engine"):
            find_python(engine, module, None)
    (tmp_path / engine / ".ready").touch()
    assert find_python(engine, module, None) == made
    monkeypatch.setenv(module.VARIABLE, str(HERE))
    assert find_python(engine, module, None) == HERE
    assert find_python(engine, module, tmp_path / engine) == made  # an environment's folder


def test_a_path_that_is_no_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = runner_of("mlx")
    (tmp_path / "text").write_text("no program")
    for path in (tmp_path / "absent", tmp_path / "text", tmp_path):
        with pytest.raises(RequestError, match="not a Python that can be run") as caught:
            find_python("mlx", module, path)
        assert caught.value.field == "python"
    monkeypatch.setenv("SMOLMOE_ENGINE_MLX", str(tmp_path / "absent"))
    with pytest.raises(RequestError, match="not a Python that can be run") as caught:
        find_python("mlx", module, None)
    assert caught.value.field == "SMOLMOE_ENGINE_MLX"
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(RequestError, match="cannot be run"):
        run_engine(tmp_path / "text", module, {}, 60)
    assert os.access(tmp_path / "text", os.X_OK)


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RequestError, match="no such engine") as caught:
        runner_of("vlm")
    assert "vllm" in str(caught.value.fix)
