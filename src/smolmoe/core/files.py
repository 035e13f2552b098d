"""Every output: checked before the work, written to a temporary place, and renamed when complete.

`place` says where an output goes and refuses what cannot be written. `replacing` writes a file, `folders` has the same
for a whole folder; `locked` keeps other processes out of a folder that grows. `writing` turns what the system refuses
into an error that names the path and the system's reason.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from smolmoe.errors import OutputError, SmolmoeError

if sys.platform != "win32":
    import fcntl

Kind = Literal["file", "folder", "growing folder"]
_TRIAL = ".smolmoe-"
_LONGEST = 255  # bytes of a name, on every usual file system
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EFBIG, errno.EROFS)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_PATIENCE = 0.25  # seconds: whoever only looks whether a folder is taken has its lock for a moment


# -- before the work ---------------------------------------------------------------------------------------------


def place(out: str | Path, kind: Kind = "folder", *, field: str = "out") -> Path:
    """Where an output goes, absolute. Links are followed: they stay, and what they point to is written.

    Args:
        kind: a folder is replaced as a whole and needs a folder around it that can be written; a growing one is
            written into.

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
                return target  # a file in the place of a folder: whoever asked says what should be there
            raise refused(errno.ENOTDIR, there)
        _try(there)
        for folder in (target, beside(target, "smolmoe")):
            if folder.is_dir() and not folder.is_symlink():
                with locked(folder, shown=out, field=field):
                    pass
    return target


def _try(folder: Path) -> None:
    """Write into a folder and leave nothing there, not even when killed.

    Neither its mode nor `os.access` tells of quotas, immutable folders and those that the kernel makes.
    """
    if hasattr(os, "O_TMPFILE"):
        try:
            os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    os.rmdir(tempfile.mkdtemp(prefix=_TRIAL, dir=folder))


def followed(out: str | Path, *, field: str = "out") -> Path:
    """What a path leads to through all links, absolute; it need not exist.

    Raises:
        OutputError: a path that the system cannot have, or a link to nowhere.
    """
    if not os.fspath(out):  # which realpath takes for the current folder
        raise OutputError("is empty.", field=field, value=str(out), fix="Use a path; . is the current folder.")
    try:
        target = Path(os.path.realpath(out))
        longest = max(len(os.fsencode(name)) for name in target.parts)
    except ValueError as error:  # a NUL, or half a surrogate pair
        raise OutputError(f"is not a path ({error}).", field=field, value=str(out)) from error
    with writing(out, field=field):
        if target.is_symlink():
            raise refused(errno.ELOOP, target)
        if longest > _LONGEST:
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
    """See that the folder is there that a file is to go into.

    Raises:
        OutputError: it is not.
    """
    if out is not None and not place(out, "file").parent.is_dir():
        raise OutputError("there is no such folder.", field="out", value=str(out.parent), fix="Make it first.")


def expanded(path: str | Path) -> Path:
    """A path with its leading `~` expanded, as a shell does; unchanged if it exists literally or has no home."""
    return Path(path if os.path.exists(path) else os.path.expanduser(path))


def nearest(path: Path) -> Path:
    """The first of a path and the folders around it that exists."""
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


def refused(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


# -- what the system refuses ---------------------------------------------------------------------------------------


@contextmanager
def writing(path: str | Path, *, field: str = "out", said: str | None = None, fix: str | None = None) -> Iterator[None]:
    """What the system refuses while `path` is written becomes an OutputError; other failures pass.

    Args:
        said: what cannot be done.  [default: "cannot be written"]
        fix: in place of the one that follows from the reason.
    """
    try:
        yield
    except SmolmoeError as error:
        ours = beside(Path(os.path.realpath(path)), "smolmoe")
        if isinstance(error.value, str) and Path(error.value).is_relative_to(ours):
            error.value = str(path)  # which the user has named, while what is in our folder says nothing to them
        raise
    except Exception as error:
        reason, where = _reason(error), _file_at_fault(error, Path(path))
        if reason is None or where is None:
            raise
        number, text = reason
        problem = said or ("the disk is full" if number in _FULL else "cannot be written")
        raise OutputError(
            f"{problem} ({where}{text}).", field=field, value=str(path), fix=fix or _fix(number)
        ) from error


def _reason(error: Exception) -> tuple[int | None, str] | None:
    """Number and text of what the system refused; None of an error of another kind."""
    if isinstance(error, OSError):
        # The network's errors are OSErrors as well; numpy says of an array only how much of it was written.
        own = type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError)
        short = re.search(r"requested and \d+ written", str(error))
        of_disk = error.filename is not None or error.errno in (*_UNWRITABLE, errno.EIO)
        return (error.errno, error.strerror or str(error)) if own and (of_disk or short) else None
    # Tokenizers and safetensors are written by Rust, whose errors come as text alone.
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else None
    return None if number not in _UNWRITABLE else (number, os.strerror(number or 0))


def _file_at_fault(error: Exception, path: Path) -> str | None:
    """The file that an error names, to be shown: nothing of the output itself; None of a file that is no part of it."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return ""
    file, target, given = (Path(os.path.abspath(os.fsdecode(one))) for one in (name, os.path.realpath(path), path))
    ours = (beside(target, "smolmoe"), beside(target, "partial"))  # which the user has not named
    if file in (target, given) or file.name.startswith(_TRIAL) or any(file.is_relative_to(one) for one in ours):
        return ""
    is_part = file.is_relative_to(target) or file.is_relative_to(given)
    return f"{file}: " if is_part or file in (*target.parents, *given.parents) else None


def _fix(number: int | None) -> str:
    if number in _FULL:
        return "Free some space or choose another disk."
    if number == errno.ENAMETOOLONG:
        return f"Choose a name of at most {_LONGEST} bytes."
    if number in (errno.EFBIG, errno.ENOTDIR, errno.ELOOP):
        return "Choose another place."
    return "Choose a writable place."


# -- locks -----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path, *, shown: str | Path | None = None, field: str = "out") -> Iterator[None]:
    """Keep every other process out of a folder for as long as the block runs. A kill ends that, too.

    Nothing is written for it. On a file system that has no locks it keeps nobody out.

    Args:
        shown: the path as it was asked for.

    Raises:
        OutputError: another process has it.
    """
    if sys.platform == "win32":
        yield
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _take(fd, shown or folder, field)
        yield
    finally:
        os.close(fd)


def _take(fd: int, shown: str | Path, field: str = "out") -> bool:
    """Lock an open folder or file; False where the file system has no locks."""
    if sys.platform == "win32":
        return False
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() < until:
                time.sleep(_PATIENCE / 10)
                continue
            raise OutputError(
                f"another process is writing there{_holder(fd)}.",
                field=field,
                value=str(shown),
                fix="Wait for it, or choose another place.",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False


def _holder(fd: int) -> str:
    """Which process has the lock of an open file or folder, where the system tells (Linux)."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            kind, holder, where = line.split()[1], line.split()[4], line.split()[5]
            if kind == "FLOCK" and where == place:
                return f" (process {holder})"
    return ""


@contextmanager
def growing(out: Path, check: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Make a folder to write into, and keep other processes out of it while the block runs.

    Args:
        check: raises where what is there must not be written over; called before anything is.

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
    """A folder that is there; it and those around it go again where the block fails and they came to be empty."""
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for place in absent:
                place.rmdir()
        raise


def emptied(folder: Path) -> None:
    """Remove what is in a folder, which stays: it may be a link, a mount point, or locked."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def others(folder: Path, *names: str) -> list[Path]:
    """The files, and links, in a folder and below that are not called so, nor lie in a folder that is; sorted."""
    ours = {path for name in (*names, ".*.partial", ".*.smolmoe") for path in folder.glob(name)}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if ours.isdisjoint((path, *path.parents)))


def check_no_others(folder: Path, *names: str, field: str, value: object) -> None:
    """Raises OutputError where a folder that is to be emptied holds more than what is called so."""
    found = [path.relative_to(folder).as_posix() for path in others(folder, *names)]
    if found:
        raise OutputError(
            f"{folder} holds {', '.join(found[:3])}{' and more' if found[3:] else ''}, which smolmoe did not write "
            "there and which would be lost.",
            field=field,
            value=value,
            fix="Move it away first.",
        )


# -- files -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """As `write_json` writes it."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OutputError: the system refuses.
    """
    write_together({path: text})


def write_together(texts: Mapping[Path, str]) -> None:
    """Write text files; none is put into its place before all are written.

    Raises:
        OutputError: the system refuses.
    """
    with ExitStack() as together:
        for path, text in texts.items():
            together.enter_context(replacing(path)).write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, *, field: str = "out") -> Iterator[Path]:
    """A temporary file next to `path`; renamed to `path` when the block succeeds, removed otherwise.

    Where `path` is a link, the file that it points to is replaced.

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


def taken(path: Path, flags: int, shown: str | Path) -> tuple[int, bool]:
    """Open a file or folder of ours and lock it; (descriptor, whether it is locked).

    Whoever had it may have removed it in between; the lock of what has no name any more keeps nobody out.
    """
    while True:
        if flags & os.O_DIRECTORY:
            path.mkdir(exist_ok=True)
        try:
            fd = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if flags & os.O_DIRECTORY:  # it was there a moment ago
                continue
            raise
        try:
            is_locked = _take(fd, shown)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd, is_locked
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def beside(path: Path, suffix: str) -> Path:
    """Where `path` is written first: a hidden name of ours in the same folder, as long as names may be."""
    name = f".{path.name}.{suffix}"
    if len(os.fsencode(name)) > _LONGEST:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{suffix}"
    return path.parent / name


def remove(folder: Path, *names: str) -> None:
    """Delete what is called so in a folder, where it is there; everything else stays.

    Args:
        names: of files and folders, with wildcards. A link is deleted, what it leads to is not.
    """
    for name in names:
        for path in sorted(folder.glob(name)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
