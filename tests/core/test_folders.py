"""A folder as an output: at every moment the old one or the new one, whole; nothing of anybody else's is touched."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.core.test_files import another_process, small_files

from smolmoe.core import folders
from smolmoe.core.folders import move_into_place, whole_or_nothing, workshop
from smolmoe.errors import OutputError

FILES = ("config.json", "inner/a")


def write(out: Path, text: str, **options: Any) -> None:
    with whole_or_nothing(out, **options) as work:
        fill(work, text)


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(text)


def contents(out: Path) -> set[str]:
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(FILES)
    return {(out / name).read_text() for name in FILES}


def killed_at(number: int, action: Callable[[], None]) -> bool:
    """Do it in a process that is killed at its nth call of the system; whether it was."""
    pid = os.fork()
    if not pid:
        calls = 0

        def count(event: str, _: object) -> None:
            nonlocal calls
            if event == "os.kill":
                return
            calls += event.startswith(("os.", "open", "shutil.", "ctypes.", "fcntl.", "pathlib."))
            if calls > number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_point_leaves_the_old_or_the_new(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system cannot exchange folders, the next call at the latest puts the old one back."""
    monkeypatch.setattr(folders, "_flush", lambda path: None)  # slow, and of no matter where only a process dies
    if not exchanges:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    found = set()
    number = 0
    while True:
        out = tmp_path / str(number) / "moe"
        fill(out, "old")
        is_killed = killed_at(number, lambda out=out: write(out, "new", overwrite=True))
        if exchanges or out.exists():
            found |= contents(out)
        assert set(os.listdir(out.parent)) <= {"moe", ".moe.smolmoe"}
        with workshop(out):  # as the next call does
            found |= contents(out)
        assert os.listdir(out.parent) == ["moe"]
        if not is_killed:
            break
        number += 1
    assert found == {"old", "new"}
    assert number > 15


def test_only_our_own_leftovers_are_cleared(tmp_path: Path) -> None:
    for name in (".v1.2024.backup", ".v1.9.smolmoe", ".v1.12345.old", ".v1.smolmoe.bak", "v1.9"):
        fill(tmp_path / name, "mine")
    killed_at(15, lambda: write(tmp_path / "v1", "new"))
    assert (tmp_path / ".v1.smolmoe" / folders.MARKER).is_file()
    write(tmp_path / "v1", "new")
    assert {name: contents(tmp_path / name) for name in os.listdir(tmp_path) if name != "v1"} == {
        name: {"mine"} for name in (".v1.2024.backup", ".v1.9.smolmoe", ".v1.12345.old", ".v1.smolmoe.bak", "v1.9")
    }
    with pytest.raises(OutputError, match=r"\.v1\.9\.smolmoe is in the way"):  # without our marker it is not ours
        write(tmp_path / "v1.9", "new", overwrite=True)
    assert contents(tmp_path / ".v1.9.smolmoe") == contents(tmp_path / "v1.9") == {"mine"}


def between(out: Path, action: Callable[[], None], **options: Any) -> None:
    """Write to `out`, while something else is done."""
    with whole_or_nothing(out, **options) as work:
        fill(work, "first")
        action()


def test_the_first_of_two_processes_wins(tmp_path: Path) -> None:
    out = tmp_path / "moe"
    with pytest.raises(OutputError, match="was created while"):
        between(out, lambda: fill(out, "mine"))
    assert contents(out) == {"mine"}
    for overwrite in (True, False):  # while another one works, the second is refused at its start
        with pytest.raises(OutputError, match="another process"):
            between(out, lambda overwrite=overwrite: write(out, "second", overwrite=overwrite), overwrite=True)
        assert contents(out) == {"mine"}
    with another_process(out), pytest.raises(OutputError, match="another process"):
        write(out, "new", overwrite=True)
    assert os.listdir(tmp_path) == ["moe"]


def test_what_came_meanwhile_is_asked_about_again(tmp_path: Path) -> None:
    out = tmp_path / "moe"

    def check() -> None:
        if out.exists():
            raise OutputError("not a model folder")

    with pytest.raises(OutputError, match="not a model"):
        between(out, lambda: fill(out, "mine"), overwrite=True, check=check)
    assert contents(out) == {"mine"}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays(there: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "moe").symlink_to("disk/real")
    if there:
        fill(tmp_path / "disk" / "real", "old")
    write(tmp_path / "moe", "new", overwrite=there)
    fill(tmp_path / "made", "newer")
    assert contents(tmp_path / "disk" / "real") == {"new"}
    move_into_place(tmp_path / "made", tmp_path / "moe")
    assert (tmp_path / "moe").is_symlink()
    assert contents(tmp_path / "moe") == contents(tmp_path / "disk" / "real") == {"newer"}
    assert (os.listdir(tmp_path / "disk"), sorted(os.listdir(tmp_path))) == (["real"], ["disk", "moe"])


def test_a_link_to_another_disk(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk")
    place = other / f"smolmoe-test-{os.getpid()}"
    (tmp_path / "model").symlink_to(place)
    try:
        fill(tmp_path / ".model.partial", "new")
        move_into_place(tmp_path / ".model.partial", tmp_path / "model")
        assert contents(place) == {"new"}
        assert os.listdir(tmp_path) == ["model"]
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("name", ["moe", "a/b/moe", "x" * 255])
def test_nothing_is_left_of_what_fails(name: str, tmp_path: Path) -> None:
    with small_files(100), pytest.raises(OutputError, match=r"cannot be written \(File too large\)"):
        write(tmp_path / name, "x" * 1000)
    assert os.listdir(tmp_path) == []
    write(tmp_path / name, "x")
    assert contents(tmp_path / name) == {"x"}
