"""A folder as an output: written to a temporary place by one process, and moved there atomically when complete.

For `moe` that place is the folder `.moe.smolmoe`. The process that writes holds its lock, which a kill releases; so
a process that gets the lock knows that the content was abandoned.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from smolmoe.core.files import made, place
from smolmoe.core.locks import locked, taken
from smolmoe.core.refusals import beside, refused, writing
from smolmoe.errors import OutputError

MARKER = "made-by-smolmoe"  # a folder of this name without this file is not ours
_OLD = "old"  # an output that was moved aside, if the system cannot exchange two folders
_CAME_MEANWHILE = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def whole_or_nothing(
    out: Path, *, overwrite: bool = False, check: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """A temporary folder next to `out`; it replaces `out` when the block succeeds, otherwise it is removed.

    `out` is always either the old folder or the complete new one, if the system can exchange two folders (Linux,
    macOS). Elsewhere a kill between two renames is repaired by the next call.

    Args:
        overwrite: a folder that was created at `out` in the meantime is replaced.
        check: raises if the content of `out` must not be replaced; called again before the replacement.

    Raises:
        OutputError: the system refuses, another process is writing there, or `out` was created meanwhile.
    """
    target = place(out)
    with writing(out), workshop(target, shown=out) as room, ExitStack() as held:
        check()  # including an output that a killed process had moved aside
        if target.is_dir():  # while its lock is held no other process writes into it or replaces it
            held.enter_context(locked(target, shown=out))
        work = room / "new"
        work.mkdir()
        yield work
        for path in (*work.rglob("*"), work):
            _flush(path)
        check()
        _put(work, target, out, overwrite=overwrite)
        _flush(target.parent)


def move_into_place(work: Path, out: Path) -> None:
    """Replace `out` by a complete folder, as `whole_or_nothing` does.

    If `out` is a link, its target is replaced.

    Raises:
        OutputError: the system refuses.
    """
    with whole_or_nothing(out, overwrite=True) as room:
        try:
            os.rename(work, room)
        except OSError as error:  # a link to another disk
            if error.errno != errno.EXDEV:
                raise
            shutil.copytree(work, room, dirs_exist_ok=True)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def workshop(target: Path, *, shown: str | Path | None = None) -> Iterator[Path]:
    """A folder next to `target`, on the same disk, for this process only; it is removed with its content.

    The leftovers of a killed process are removed first; an output that it had moved aside is put back.

    Args:
        target: from `place`.
        shown: the path as it was asked for.

    Raises:
        OutputError: another process holds it, or something else has this name.
    """
    with made(target.parent):
        room = beside(target, "smolmoe")
        fd, is_locked = taken(room, os.O_RDONLY | os.O_DIRECTORY, shown or target)
        try:
            if is_locked:
                _take_over(room, target)
                yield room
                _empty(room)
            else:  # another process may use it: work under a separate name, and clear nothing
                with tempfile.TemporaryDirectory(prefix=f"{room.name}.", dir=room.parent) as own:
                    yield Path(own)
        except BaseException:
            if (room / MARKER).is_file() and is_locked:
                _empty(room)
            raise
        finally:
            with suppress(OSError):
                room.rmdir()
            os.close(fd)


def _take_over(room: Path, target: Path) -> None:
    """Remove the leftovers of a killed process from a folder that we have locked, and mark it as ours."""
    if not (room / MARKER).is_file():
        if any(room.iterdir()):
            raise OutputError(
                f"{room} is in the way: smolmoe needs this path, but its content was not made by smolmoe.",
                field="out",
                value=str(target),
                fix="Move it away, or choose another place.",
            )
        (room / MARKER).touch()
    if (room / _OLD).exists() and not target.exists():
        (room / _OLD).rename(target)
    _empty(room)
    (room / MARKER).touch()


def _empty(room: Path) -> None:
    """The marker is removed last: a kill must not leave a folder that is not known to be ours."""
    for path in sorted(room.iterdir(), key=lambda path: path.name == MARKER):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _put(work: Path, target: Path, shown: Path, *, overwrite: bool) -> None:
    if overwrite and target.exists():
        if not _exchange(work, target):
            old = work.with_name(_OLD)
            target.rename(old)
            try:
                work.rename(target)
            except OSError:
                old.rename(target)
                raise
        return
    try:
        work.rename(target)  # replaces nothing or an empty folder; otherwise the system refuses
    except OSError as error:
        if error.errno not in _CAME_MEANWHILE:
            raise
        raise OutputError(
            "was created while this was being written, and is not replaced.",
            field="out",
            value=str(shown),
            fix="Choose another place, or use `overwrite=True`.",
        ) from error


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False if the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h, which is RENAME_SWAP of macOS
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(here, names[0], here, names[1], exchange)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, exchange)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        raise refused(number, second)
    return not failed


def _flush(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
