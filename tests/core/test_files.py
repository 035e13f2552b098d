"""Outputs: refused before the work where they cannot be written, whole or not at all, by one process at a time."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolmoe.core.files import Kind, place, replacing, write_json
from smolmoe.core.locks import locked
from smolmoe.core.refusals import writing
from smolmoe.errors import OutputError


@contextmanager
def small_files(nbytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def another_process(folder: Path) -> Iterator[int]:
    """A process that holds the lock of a folder."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(folder):
            os.write(write, b"!")
            signal.pause()
    assert os.read(read, 1) == b"!"
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["file", "folder", "growing folder"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file.txt/out", r"file\.txt: Not a directory"),
        ("file.txt/a/b/out", r"file\.txt: Not a directory"),
        ("x" * 256, "File name too long"),
        ("new/" + "é" * 128 + "/out", "File name too long"),
        ("/".join(["x" * 250] * 20), "File name too long"),
        ("loop", "symbolic links"),
        ("loop/out", "symbolic links"),
        ("lost", r"is a link to .*nowhere/at/all, whose folder does not exist"),
        ("nul\0", "is not a path"),
        ("\ud800", "is not a path"),
        ("pipe", "neither a file nor a folder"),
        ("/proc/out", "No such file|Operation not permitted|Permission denied"),
        ("/dev/full", "neither a file nor a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, says: str, kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere" / "at" / "all")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputError, match=says) as caught:
        place(tmp_path / name, kind)
    assert caught.value.value == str(tmp_path / name)
    assert caught.value.fix or "is not a path" in says
    assert sorted(os.listdir(tmp_path)) == before


def test_where_an_output_goes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "disk").symlink_to("a", target_is_directory=True)
    (tmp_path / "a").mkdir()
    assert place(tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert place(tmp_path / "link") == tmp_path / "there"
    assert place(tmp_path / "disk" / "b" / "c", "file") == tmp_path / "a" / "b" / "c"
    assert place(tmp_path / ("x" * 255), "file").name == "x" * 255
    with pytest.raises(OutputError, match="is a folder"):
        place(tmp_path, "file")
    with pytest.raises(OutputError, match="mount point"):
        place("/proc")
    assert sorted(os.listdir(tmp_path)) == ["a", "disk", "link"]
    assert os.listdir(tmp_path / "a") == []


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with small_files(10_000), pytest.raises(OutputError, match="File too large") as caught:
        write_json(file, {"a": "x" * 20_000})
    assert caught.value.value == str(file)
    assert file.read_text() == '{\n  "a": 1\n}\n'

    def stop(partial: Path) -> None:
        partial.write_text("half")
        raise KeyError

    def write_array(partial: Path) -> None:
        np.zeros(4000).tofile(partial)

    for write, error in ((stop, KeyError), (write_array, OutputError)):
        with small_files(1000), pytest.raises(error), replacing(tmp_path / "b") as partial:
            write(partial)
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", "x" * 255, "x" * 250])
def test_a_link_stays_and_what_it_points_to_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("real") / name)
    for value in (1, 2):
        write_json(link, value)
        assert link.is_symlink()
        assert (tmp_path / "real" / name).read_text() == f"{value}\n"
    assert os.listdir(tmp_path / "real") == [name]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with another_process(folder):
        for call in (
            lambda: place(folder),
            lambda: place(folder, "growing folder"),
            lambda: locked(folder).__enter__(),
        ):
            with pytest.raises(OutputError, match="another process is writing there"):
                call()
    with locked(folder):  # it was killed
        assert os.listdir(folder) == []


def _rust(text: str) -> Exception:
    return type("SafetensorError", (Exception,), {})(text)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "/out/model/a"), "/out/model/a: Permission denied"),
        (_rust("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/source/model.safetensors"), None),
        (_rust("No such file or directory (os error 2)"), None),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), None),
        (socket.gaierror(-2, "Name or service not known"), None),
        (OSError("Can't load the model"), None),
    ],
)
def test_only_what_the_system_refuses_is_an_output_s(error: Any, says: str | None) -> None:
    with pytest.raises(type(error) if says is None else OutputError, match=says), writing("/out/model"):
        raise error


def test_what_is_no_fault_of_the_place_is_not_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Too many open files"), writing(tmp_path / "out"):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_an_empty_path_is_no_place() -> None:
    with pytest.raises(OutputError, match="is empty"):
        place("", "growing folder")
