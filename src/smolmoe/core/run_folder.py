"""The folder of a job over several runs: whose it is, and whether a resumed job has the same settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from smolmoe.core.contents import remove
from smolmoe.core.files import followed, write_json
from smolmoe.core.json_text import read_object
from smolmoe.errors import OutputError

OR_ELSE = "start over with `overwrite=True`, or name another folder."
RECORDS = "stages"  # of a pipeline: a file for each finished stage


def differences(found: Any, asked: Any, *, within: str = "", path: str = "") -> str:
    """The keys of plain data that differ, with both values.

    Args:
        within: a prefix of keys that is left out.
    """
    if not (isinstance(found, dict) and isinstance(asked, dict)):
        return f"{path.removeprefix(within)}: {found} there, {asked} here"
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    inner = (
        differences(found.get(key), asked.get(key), within=within, path=f"{path}.{key}" if path else key)
        for key in keys
    )
    return ", ".join(inner)


def begin_folder(
    out: Path,
    asked: dict[str, Any],
    *,
    what: str,
    record: str,
    made: Collection[str],
    finished: str | None = None,
    resume: bool = True,
    overwrite: bool = False,
    explain: Callable[[Any, Any], str] = differences,
) -> None:
    """Begin a job in a folder, or continue one that was begun with the same settings.

    Args:
        asked: the settings that decide the result, as plain data.
        what: the kind of output, for messages.
        record: the file of the settings, by which the folder is known as ours.
        made: names, with wildcards, of what the job writes there: all that starting over deletes.
        finished: the file that a finished job has.
        explain: how settings differ, in words.

    Raises:
        OutputError: the folder holds something else, a job that is not to be resumed, or one with other settings.
    """
    asked = json.loads(json.dumps(asked))
    if is_ours(out, what, record, leftovers=(f".{record}.partial",)):
        if overwrite:
            remove(out, *made)
        elif not resume:
            state = "finished" if finished and (out / finished).is_file() else "unfinished"
            raise occupied(out, f"{what} ({state})", f"Use `resume=True`, {OR_ELSE}")
        elif (found := read_object(out / record, fix=f"Restore it, {OR_ELSE}")) != asked:
            raise OutputError(
                f"the folder holds {what} with other settings ({explain(found, asked)}).",
                field="out",
                value=str(out),
                fix=f"Use the same settings, {OR_ELSE}",
            )
        remove(out, ".*.partial")
    followed(out).mkdir(parents=True, exist_ok=True)
    write_json(out / record, asked)  # first: it says whose folder this is


def is_ours(out: Path, what: str, *marks: str, leftovers: Collection[str] = ()) -> bool:
    """Whether a folder holds an output of ours; False if it is free.

    Args:
        what: the kind of output, for messages.
        marks: files that all such outputs have.
        leftovers: names that a run may leave if it is killed before the marks are written.

    Raises:
        OutputError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and {path.name for path in out.iterdir()} <= set(leftovers)):
        return False
    if not all((out / mark).is_file() for mark in marks):
        raise foreign(out, what, *marks)
    return True


def occupied(out: Path, what: str, fix: str) -> OutputError:
    """The error if a folder holds an output that must not be lost."""
    return OutputError(f"the folder contains {what}.", field="out", value=str(out), fix=fix)


def foreign(folder: Path, wanted: str, *marks: str, fix: str = "Use a new folder.") -> OutputError:
    """The error if an output folder holds something else.

    Args:
        wanted: the expected kind of output.
        marks: the files of such an output.
    """
    lacks = f" (no {' and '.join(marks)} in it)" if marks else ""
    return OutputError(f"contains something other than {wanted}{lacks}.", field="out", value=str(folder), fix=fix)
