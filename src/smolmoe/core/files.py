"""Every output is checked before the work, written to a temporary file, and renamed when complete.

`place` returns the path of an output, and refuses what cannot be written. `replacing` writes a file, `core.folders` a
whole folder; `growing` is for a folder that is written into.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from smolmoe.core.locks import locked, taken
from smolmoe.core.refusals import LONGEST, TRIAL, beside, refused, writing
from smolmoe.errors import OutputError

Kind = Literal["file", "folder", "growing folder"]


def place(out: str | Path, kind: Kind = "folder", *, field: str = "out") -> Path:
    """The absolute path of an output. Links are followed: they stay, and their target is written.

    Args:
        kind: a folder is replaced as a whole, so its parent must be writable; a growing one is written into.

    Raises:
        OutputError: it cannot be written there, or another process is writing there.
    """
    target = followed(out, field=field)
    with writing(out, field=field):
        there = nearest(target)
        if there == target:
            _check_kind(target, kind, field)
        if there != target or kind != "growing folder":
            there = nearest(target.parent)
        if not there.is_dir():
            if there == target:
                return target  # a file in place of a folder: the caller reports it
            raise refused(errno.ENOTDIR, there)
        _try(there)
        for folder in (target, beside(target, "smolmoe")):
            if folder.is_dir() and not folder.is_symlink():
                with locked(folder, shown=out, field=field):
                    pass
    return target


def _try(folder: Path) -> None:
    """Write into a folder and leave nothing there, even if killed.

    Neither the mode nor `os.access` shows quotas, immutable folders and folders of the kernel.
    """
    if hasattr(os, "O_TMPFILE"):
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    os.rmdir(tempfile.mkdtemp(prefix=TRIAL, dir=folder))


def followed(out: str | Path, *, field: str = "out") -> Path:
    """The target of a path through all links, absolute; it need not exist.

    Raises:
        OutputError: an invalid path, or a broken link.
    """
    if not os.fspath(out):  # realpath would return the current folder
        raise OutputError("is empty.", field=field, value=str(out), fix="Use a path; . is the current folder.")
    try:
        target = Path(os.path.realpath(out))
        longest = max(len(os.fsencode(name)) for name in target.parts)
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OutputError(f"is not a path ({error}).", field=field, value=str(out)) from error
    with writing(out, field=field):
        if target.is_symlink():
            raise refused(errno.ELOOP, target)
        if longest > LONGEST:
            raise refused(errno.ENAMETOOLONG, target)
        os.stat(nearest(target))
    if Path(out).is_symlink() and not target.parent.is_dir():
        raise OutputError(
            f"is a link to {target}, whose folder does not exist.",
            field=field,
            value=str(out),
            fix="Create that folder, remove the link, or choose another place.",
        )
    return target


def check_parent(out: Path | None) -> None:
    """Check that the folder of an output file exists.

    Raises:
        OutputError: it does not.
    """
    if out is not None and not place(out, "file").parent.is_dir():
        raise OutputError("no such folder.", field="out", value=str(out.parent), fix="Create it first.")


def expanded(path: str | Path) -> Path:
    """A path with its leading `~` expanded, as a shell does; unchanged if it exists literally or has no home."""
    return Path(path if os.path.exists(path) else os.path.expanduser(path))


def nearest(path: Path) -> Path:
    """The first of a path and its parents that exists."""
    for found in (path, *path.parents):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(found)
            return found
    raise refused(errno.ENOENT, path)


def _check_kind(target: Path, kind: Kind, field: str) -> None:
    mode = os.stat(target).st_mode
    if kind == "file" and stat.S_ISDIR(mode):
        raise OutputError("is a folder.", field=field, value=str(target), fix="Use a file in it.")
    if kind == "growing folder" and stat.S_ISREG(mode):
        raise OutputError("is a file, not a folder.", field=field, value=str(target), fix="Use a folder.")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OutputError(
            "is neither a file nor a folder.", field=field, value=str(target), fix="Use a file or a folder."
        )
    if kind == "folder" and os.path.ismount(target):
        raise OutputError(
            "is a mount point, which cannot be replaced as a whole.",
            field=field,
            value=str(target),
            fix=f"Use a folder in it, such as {target / 'model'}.",
        )


@contextmanager
def growing(out: Path, check: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Create a folder to write into, and keep other processes out while the block runs.

    Args:
        check: raises if the existing content must not be overwritten; called before anything is written.

    Raises:
        OutputError: the system refuses, or another process is writing there.
    """
    target = place(out, "growing folder")
    with writing(out):
        check()
        with made(target), locked(target, shown=out):
            yield


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Create a folder; if the block fails, it and its new parents are removed if they are empty."""
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in absent:
                place.rmdir()
        raise


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all.

    Raises:
        OutputError: the system refuses.
    """
    write_together({path: text})


def write_together(texts: Mapping[Path, str]) -> None:
    """Write text files; none is renamed before all are written.

    Raises:
        OutputError: the system refuses.
    """
    with ExitStack() as together:
        for path, text in texts.items():
            together.enter_context(replacing(path)).write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, *, field: str = "out") -> Iterator[Path]:
    """A temporary file next to `path`; renamed to `path` when the block succeeds, removed otherwise.

    If `path` is a link, its target is replaced.

    Raises:
        OutputError: the system refuses, or another process is writing it.
    """
    target = Path(os.path.realpath(path))
    partial = beside(target, "partial")
    with writing(path, field=field):
        fd = taken(partial, os.O_RDWR | os.O_CREAT, path)[0]
        try:
            yield partial
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
