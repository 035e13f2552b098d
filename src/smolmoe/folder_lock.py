"""One process at a time writes into a folder over time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smolmoe.errors import OutputError
from smolmoe.provenance import command

logger = logging.getLogger(__name__)

_LONGEST = 240  # bytes of a file's name, so that what is added to it still fits
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def held(folder: Path, *, field: str = "out") -> Iterator[None]:
    """Within, no other process that asks for it writes into this folder, which need not exist.

    The lock is the operating system's, on a file beside the folder (`.NAME.lock`): it ends with the process, however
    that ends. Links are followed, so that one folder has one lock. Where nothing may be written beside the folder, the
    folder itself is locked.

    Raises:
        OutputError: another process holds it, or it cannot be written there.
    """
    place = Path(os.path.realpath(folder))
    made = _make_parents(place, field)
    try:
        fd, file = _open(place, field)
        try:
            yield
        finally:
            if file is not None:
                file.unlink(missing_ok=True)
            os.close(fd)
    finally:
        for parent in made:
            try:
                parent.rmdir()
            except OSError:  # something was written there
                break


def lock_file(place: Path) -> Path:
    """The file that stands for the lock on a folder."""
    name = place.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return place.parent / f".{name}.lock"


def _make_parents(place: Path, field: str) -> list[Path]:
    """Make the folders above; returns those that came into being, the innermost first."""
    try:
        with suppress(FileNotFoundError):
            place.lstat()  # a name that is too long, or a file above
        missing = [parent for parent in place.parents if not parent.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(place, field, error) from error
    return missing


def _open(place: Path, field: str) -> tuple[int, Path | None]:
    """The lock's descriptor, and the file to delete in the end; None where the folder itself is locked."""
    file = lock_file(place)
    while True:
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in _READ_ONLY or not os.access(place, os.R_OK | os.W_OK):
                raise _unwritable(place, field, error) from error
            fd = os.open(place, os.O_RDONLY)
            _lock(fd, place, field)
            return fd, None
        _lock(fd, place, field)
        if _is(fd, file):
            _sign(fd)
            return fd, file
        os.close(fd)  # who held it has deleted the file meanwhile, and another may be there


def _lock(fd: int, place: Path, field: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _holder(fd)
        os.close(fd)
        raise OutputError(
            f"another process writes there{holder}.",
            field=field,
            value=str(place),
            fix="Wait until it has ended, stop it, or name another folder.",
        ) from error
    except OSError as error:
        logger.warning("%s: this file system has no locks (%s); let no other run write there.", place, error)


def _is(fd: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file.stat())
    except FileNotFoundError:
        return False


def _sign(fd: int) -> None:
    about = {"pid": os.getpid(), "host": socket.gethostname(), "command": command()}
    with suppress(OSError):  # a full disk; the lock holds without it
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(about).encode(), 0)


def _holder(fd: int) -> str:
    """Who holds the lock, as far as it has said so."""
    try:
        about = json.loads(os.pread(fd, 1 << 16, 0))
        said = f"process {about['pid']} on {about['host']}"
        return f" ({said}: {about['command']})" if about["command"] else f" ({said})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _unwritable(place: Path, field: str, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error}).",
        field=field,
        value=str(place),
        fix="Name a folder that you may write to.",
    )
