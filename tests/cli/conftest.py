"""What tests of several commands share."""

from __future__ import annotations

import signal
import sys

import pytest
from tests.cli.calls import Call, Done

from smolmoe.cli import calling, main


@pytest.fixture
def smolmoe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`smolmoe("upcycle", ...)` does what the command does."""

    monkeypatch.setattr(calling, "me", lambda: "smolmoe")  # whether or not this environment is on the PATH

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["smolmoe", *map(str, arguments)])
        capsys.readouterr()
        code, handler = 0, signal.getsignal(signal.SIGTERM)
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)
        printed = capsys.readouterr()
        return Done(code, printed.out, printed.err)

    return call
