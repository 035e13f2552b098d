"""What a command shows while it works: a line that moves on a terminal, lines now and then in a log."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from smolmoe.cli.output import quiet_libraries
from smolmoe.cli.progress import LogLines, Steps, clock, moves, progress
from smolmoe.core.progress import within

Event = tuple[float, str, int, int, str]


def lines(*events: Event) -> list[str]:
    """The moving line after each report: its time, step, amount, total and detail."""
    steps = Steps(0.0)
    found = []
    for now, what, done, total, detail in events:
        steps.update(what, done, total, detail, now=now)
        found.append(steps.line(now))
    return found


def log(*events: Event, what: str = "Starting") -> list[str]:
    """The lines of a log; an event without a step is a moment at which nothing is reported."""
    shown = LogLines(0.0, what)
    found = shown.begin(0.0)
    for now, name, done, total, detail in events:
        found += shown.update(name, done, total, detail, now=now) if name else shown.tick(now)
    return found


def test_a_training_shows_steps_loss_speed_and_the_time_left() -> None:
    detail = "loss 2.3412, held out 2.4012, 12.3 K tokens/s"
    assert lines(
        (4, "Reading the model", 0, 0, ""),
        (10, "Training", 0, 1000, ""),
        (11, "Training", 1, 1000, detail),
        (20, "Training", 10, 1000, detail),
    ) == [
        "Reading the model  0:00",
        "Training  0/1,000  0%  0:00",
        f"Training  1/1,000  0%  0:01  {detail}",  # too early to tell
        f"Training  10/1,000  1%  16:30 left  {detail}",
    ]


def test_what_is_counted_without_a_detail_shows_its_rate() -> None:
    found = lines((0, "Reading and scoring", 0, 0, ""), (5, "Reading and scoring", 2000, 0, ""))
    assert found[-1] == "Reading and scoring  2,000  0:05  400/s"
    found = lines((0, "Measuring", 0, 4, ""), (30, "Measuring", 1, 4, ""))
    assert found[-1] == "Measuring  1/4  25%  1:30 left  30 s each"
    found = lines((0, "write", 0, 10**9, ""), (10, "write", 10**8, 10**9, ""))
    assert found[-1] == "Writing  100 MB of 1 GB  10%  1:30 left  10 MB/s"


def test_the_time_left_follows_the_last_seconds() -> None:
    """Ten steps of ten seconds, then ten of one second: the slow ones are forgotten."""
    slow = [(10.0 * step, "Training", step, 80, "") for step in range(11)]
    fast = [(100.0 + step, "Training", 10 + step, 80, "") for step in range(1, 41)]
    assert lines(*slow)[-1].split("  ")[3] == "11:40 left"
    assert lines(*slow, *fast)[-1].split("  ")[3] == "0:30 left"


def test_measuring_in_between_does_not_count_as_training() -> None:
    events = [(float(step), "Training", step, 100, "") for step in range(11)]
    events += [(10.0, "Measuring", 0, 0, ""), (500.0, "Training", 10, 100, "")]
    assert lines(*events)[-1].split("  ")[3] == "1:30 left"


def test_a_measurement_that_is_made_again_starts_its_clock_again() -> None:
    first = [(float(done), "Measuring", done, 10, "") for done in range(11)]
    again = [(100.0, "Training", 1, 10, ""), (200.0, "Measuring", 2, 10, ""), (205.0, "Measuring", 5, 10, "")]
    assert lines(*first)[-1] == "Measuring  10/10  100%  0:10  1/s"
    assert [line.split("  ")[3] for line in lines(*first, *again)[-2:]] == ["0:00", "0:08 left"]


def test_the_line_moves_while_nothing_is_reported() -> None:
    steps = Steps(0.0)
    steps.update("Training", 0, 10, now=0.0)
    steps.update("Training", 2, 10, now=10.0)
    assert [steps.line(now) for now in (10.0, 13.0, 60.0)] == [
        f"Training  2/10  20%  {left} left  5 s each" for left in ("0:40", "0:37", "0:00")
    ]


def test_a_stage_stands_before_the_step() -> None:
    told: list[tuple[Any, ...]] = []
    within(lambda *event: told.append(event), "2/7 moe: ")("write", 1, 2, "half")
    assert told == [("2/7 moe: write", 1, 2, "half")]
    assert lines((0, *told[0][:3], ""))[0] == "2/7 moe: Writing  1 B of 2 B  50%  0:00"


def test_a_log_gets_a_line_at_the_start_now_and_then_and_at_the_end() -> None:
    training = [(10.0 + step, "Training", step, 90, f"loss {step}") for step in range(91)]
    assert log((0, "Reading the model", 0, 0, ""), *training) == [
        "Reading the model ...",
        "Training ...",
        "Training  30/90  33%  1:00 left  loss 30",
        "Training  60/90  67%  0:30 left  loss 60",
        "Training  90/90  in 1:30  loss 90",
    ]


def test_a_log_of_short_steps_is_short() -> None:
    short = [(0.1 * done, "Answering", done, 10, "") for done in range(11)]
    assert log(*short) == ["Answering ..."]
    assert log((0, "write", 0, 5, ""), (0.1, "write", 5, 5, "")) == ["Writing ...", "Writing  5 B of 5 B  in 0:00"]


def test_a_log_of_a_long_step_gets_ever_fewer_lines() -> None:
    """Fewer than a hundred of them in a day, and half of them in the first two hours."""
    day = log(*((float(now), "Training", now, 86_400, "") for now in range(0, 86_401, 5)))
    assert 60 < len(day) < 160


def test_a_log_shows_that_a_silent_step_is_alive() -> None:
    silent = [(float(now), "", 0, 0, "") for now in range(1, 62)]
    assert log(*silent, what="Examining the MoE") == [
        "Examining the MoE ...",
        "Examining the MoE  0:30",
        "Examining the MoE  1:00",
    ]


def test_a_step_that_comes_again_is_not_announced_again() -> None:
    again = [(float(at), what, at, 10, "") for at in range(5) for what in ("Training", "Measuring")]
    assert log(*again) == ["Training ...", "Measuring ..."]


def test_a_long_path_does_not_push_the_numbers_out() -> None:
    (line,) = lines((0, "Reading with /somewhere/far/away/in/a/folder/of/a/disk/run/model", 3, 9, ""))
    assert line == "Reading with /somewh…/folder/of/a/disk/run/model  3/9  33%  0:00"


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3_725, "1:02:05")])
def test_the_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


# -- the terminal ------------------------------------------------------------------------------------------------------


class Terminal:
    """A pseudo terminal as stderr."""

    def __init__(self) -> None:
        self.ours, theirs = os.openpty()
        self.stderr = os.fdopen(theirs, "w", encoding="utf-8")

    def shown(self) -> str:
        """All that was written."""
        self.stderr.close()
        found = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(self.ours, 65536):
                found += part
        os.close(self.ours)
        return found.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")  # rich asks the descriptors 0 to 2, which are not this terminal

    def start() -> Terminal:
        found = Terminal()
        monkeypatch.setattr(sys, "stderr", found.stderr)
        return found

    return start


def screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end: carriage returns, and the sequences that rich writes."""
    rows, at = [""], 0
    for part in re.findall(r"\x1b\[\??\d*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif part == "\x1b[2K":
            rows[at] = ""
        elif re.fullmatch(r"\x1b\[\d*A", part):
            at = max(0, at - int(part[2:-1] or 1))
        elif part[0] not in "\x1b\r":
            rows[at] = part
    return [row for row in rows if row]


def test_on_a_terminal_one_line_moves_and_is_gone_in_the_end(terminal: Callable[[], Terminal]) -> None:
    shown = terminal()
    with progress(True) as report:
        assert report is not None
        report("Reading the model", 0, 0)
        report("Training", 3, 10, "loss 2.3412, " + "x" * 80)
        print("step 3 of 10: held-out loss 2.5", file=sys.stderr)
        print("a result")  # stdout is not touched
    written = shown.shown()
    assert screen(written) == ["step 3 of 10: held-out loss 2.5"]
    moved = re.findall(r"Training[^\x1b\r\n]*", written)
    assert moved
    assert {len(line) for line in moved} == {60}, moved
    assert all(line.endswith("…") for line in moved)
    assert "Training  3/10  30%  0:00  loss 2.3412" in written
    assert "\x1b[3" not in written  # no colours


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_a_line_gets_a_log(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    shown = terminal()
    assert not moves()
    with progress(True) as report:
        assert report is not None
        report("Training", 3, 10, "loss 2.3412")
    assert shown.shown() == "Training ...\r\n"


def test_what_is_not_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with progress(True, "Examining the MoE") as report:
        assert report is not None
        report("Training", 3, 10, "loss 2.3412")
    assert file.getvalue() == "Examining the MoE ...\nTraining ...\n"


def test_nothing_is_shown_that_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(False) as report:
        assert report is None
    assert capsys.readouterr().err == ""


# -- other libraries ---------------------------------------------------------------------------------------------------

CHATTER = """
import logging, sys, warnings
from smolmoe.cli.output import quiet_libraries, tell
with quiet_libraries(), tell(show=True):
    for name in ("trl", "datasets", "accelerate", "torch.distributed", "smolmoe_of_others"):
        logging.getLogger(name).warning("%s warns", name)
    warnings.simplefilter("always")
    warnings.warn("a deprecation", FutureWarning)
    logging.getLogger("trl").error("trl failed")
    logging.getLogger("smolmoe.training").info("ours")
    logging.getLogger("smolmoe.training").warning("our warning")
    for _ in range(2):
        logging.getLogger("smolmoe.core.devices").info("device: cpu")
warnings.warn("of the caller", UserWarning)
"""


def run(code: str) -> Sequence[str]:
    """Lines on the stderr of a process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_other_libraries_say_only_what_went_wrong() -> None:
    found = run(CHATTER)
    assert found[:4] == ["trl failed", "ours", "our warning", "device: cpu"]
    assert "UserWarning: of the caller" in found[4]  # quiet inside only
    assert len(found) == 5


def test_a_caller_of_the_library_keeps_the_warnings() -> None:
    found = run("import smolmoe, smolmoe.cli, warnings; warnings.warn('of the caller')")
    assert "UserWarning: of the caller" in found[0]


def test_quiet_libraries_puts_the_warnings_back() -> None:
    import warnings

    before = warnings.showwarning
    with contextlib.suppress(ZeroDivisionError), quiet_libraries():
        assert warnings.showwarning is not before
        raise ZeroDivisionError
    assert warnings.showwarning is before
