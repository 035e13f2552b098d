"""Locks of files and folders: one process at a time writes into an output. A kill releases them."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smolmoe.errors import OutputError

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)
_PATIENCE = 0.25  # seconds: a process that only checks whether a folder is locked holds its lock for a moment


@contextmanager
def locked(folder: Path, *, shown: str | Path | None = None, field: str = "out") -> Iterator[None]:
    """Keep every other process out of a folder while the block runs. A kill releases the lock.

    Nothing is written. A file system without locks keeps nobody out.

    Args:
        shown: the path as the user gave it.

    Raises:
        OutputError: another process holds the lock.
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
    """The process that holds the lock of an open file or folder, if the system reports it (Linux)."""
    found = os.fstat(fd)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            kind, holder, where = line.split()[1], line.split()[4], line.split()[5]
            if kind == "FLOCK" and where == place:
                return f" (process {holder})"
    return ""


def taken(path: Path, flags: int, shown: str | Path) -> tuple[int, bool]:
    """Open and lock a temporary file or folder; (descriptor, whether it is locked).

    The previous holder may have removed it in between; a lock on a removed file keeps nobody out.
    """
    while True:
        if flags & os.O_DIRECTORY:
            path.mkdir(exist_ok=True)
        try:
            fd = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if flags & os.O_DIRECTORY:  # removed a moment ago
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
