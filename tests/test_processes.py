"""The processes of tests: code without smolmoe, kills within a call, ranks of which one fails."""

from __future__ import annotations

import signal

import pytest
from tests.processes import NO_SMOLMOE, Child, killed_in, run, run_ranks


def test_a_child_is_like_a_new_process(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLMOE_CACHE", "here")
    monkeypatch.chdir(str(tmp_path))
    code = "import os, sys; print(sys.argv, os.environ['SMOLMOE_CACHE'], os.getcwd(), 'smolmoe' in sys.modules)"
    assert run(code, 1, "b") == f"['-c', '1', 'b'] here {tmp_path} False\n"
    with Child("import sys; print(1 / 0)") as child:
        assert child.wait() == 1
        assert "ZeroDivisionError" in child.stderr
        assert child.stdout == ""


def test_without_smolmoe_it_cannot_be_imported() -> None:
    with Child(NO_SMOLMOE + "import smolmoe.recipe") as child:
        assert child.wait() == 1
        assert "ModuleNotFoundError: smolmoe" in child.stderr


def test_a_kill_comes_within_the_call_asked_for() -> None:
    code = killed_in("shutil:which", 2) + "import shutil; [print(n, shutil.which('x')) for n in range(3)]"
    with Child(code) as child:
        assert child.wait() == -signal.SIGKILL
        assert child.stdout == "0 None\n"


def test_a_rank_that_fails_ends_the_other() -> None:
    with pytest.raises(AssertionError, match="no such luck"):
        run_ranks("import os, time\nassert os.environ['RANK'] == '1', 'no such luck'\nwhile True: time.sleep(0.01)")
