"""What the system refuses while an output is written, as an error that names the path and the reason."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smolmoe.errors import OutputError, SmolmoeError

TRIAL = ".smolmoe-"  # prefix of the files that test whether a folder is writable
LONGEST = 255  # bytes of a name, on every usual file system
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (*_FULL, errno.EFBIG, errno.EROFS)


@contextmanager
def writing(path: str | Path, *, field: str = "out", said: str | None = None, fix: str | None = None) -> Iterator[None]:
    """What the system refuses while `path` is written becomes an OutputError; other errors pass.

    Args:
        said: what cannot be done.  [default: "cannot be written"]
        fix: instead of the default for the reason.
    """
    try:
        yield
    except SmolmoeError as error:
        ours = beside(Path(os.path.realpath(path)), "smolmoe")
        if isinstance(error.value, str) and Path(error.value).is_relative_to(ours):
            error.value = str(path)  # the path that the user gave; our temporary folder means nothing to them
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
    """Number and text of a system error; None for other errors."""
    if isinstance(error, OSError):
        # Network errors are OSErrors as well; numpy reports only how much of an array was written.
        own = type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError)
        short = re.search(r"requested and \d+ written", str(error))
        of_disk = error.filename is not None or error.errno in (*_UNWRITABLE, errno.EIO)
        return (error.errno, error.strerror or str(error)) if own and (of_disk or short) else None
    # Tokenizers and safetensors are written in Rust, whose errors are text only.
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else None
    return None if number not in _UNWRITABLE else (number, os.strerror(number or 0))


def _file_at_fault(error: Exception, path: Path) -> str | None:
    """The file that an error names, for display: empty for the output itself, None for a file outside of it."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes):
        return ""
    file, target, given = (Path(os.path.abspath(os.fsdecode(one))) for one in (name, os.path.realpath(path), path))
    ours = (beside(target, "smolmoe"), beside(target, "partial"))  # unknown to the user
    if file in (target, given) or file.name.startswith(TRIAL) or any(file.is_relative_to(one) for one in ours):
        return ""
    is_part = file.is_relative_to(target) or file.is_relative_to(given)
    return f"{file}: " if is_part or file in (*target.parents, *given.parents) else None


def _fix(number: int | None) -> str:
    if number in _FULL:
        return "Free some space or choose another disk."
    if number == errno.ENAMETOOLONG:
        return f"Choose a name of at most {LONGEST} bytes."
    if number in (errno.EFBIG, errno.ENOTDIR, errno.ELOOP):
        return "Choose another place."
    return "Choose a writable place."


def refused(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def beside(path: Path, suffix: str) -> Path:
    """The temporary path of `path`: a hidden name in the same folder, no longer than names may be."""
    name = f".{path.name}.{suffix}"
    if len(os.fsencode(name)) > LONGEST:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{suffix}"
    return path.parent / name
