"""A run folder: stages that are done are not done again, and one run does not write into another's folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smolmoe.core.files import followed, remove, write_json, writing
from smolmoe.core.folders import move_into_place
from smolmoe.core.json_text import read_object
from smolmoe.errors import OutputError

SETTINGS = "settings.json"
RECORDS = "stages"
RESUME_OR_OVERWRITE = "Use `resume=True`, start over with `overwrite=True`, or name another folder."


class RunFolder:
    """The folder of one run: its settings, the records of its finished stages, and what they wrote.

    Attributes:
        path: the folder.
    """

    def __init__(
        self, path: str | Path, settings: dict[str, Any], *, made: Sequence[str] = (), overwrite: bool = False
    ):
        """Open the folder of a run with these settings, or begin one.

        Args:
            settings: whatever decides what the stages do, as plain data.
            made: names, with wildcards, of what the stages write there: all that starting over deletes.
            overwrite: start over where the folder holds a run, of whatever settings.

        Raises:
            OutputError: the folder holds a run with other settings, or something else.
        """
        self.path = Path(path)
        settings = json.loads(json.dumps(settings))
        found = self._settings()
        if found is not None and overwrite:
            remove(self.path, RECORDS, *made, ".*.partial")
            found = None
        if found is not None and found != settings:
            raise OutputError(
                f"the folder holds a run with other settings ({differences(found, settings)}).",
                field="out",
                value=str(self.path),
                fix="Name another folder, or use `overwrite=True` to start over.",
            )
        if found is None:
            followed(self.path).mkdir(parents=True, exist_ok=True)
            write_json(self.path / SETTINGS, settings)  # first: it says whose folder this is
        (self.path / RECORDS).mkdir(exist_ok=True)

    def stage(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The record of a stage: read where the stage is finished, else made, timed and written."""
        file = self.path / RECORDS / f"{name}.json"
        if file.is_file():
            record: dict[str, Any] = read_object(file, fix="Delete it: the stage is then done again.")
            return record
        start = time.perf_counter()
        record = make()
        write_json(file, {**record, "wall_seconds": round(time.perf_counter() - start, 2)})
        return self.stage(name, make)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder to write into, which gets its `name` when all is written."""
        partial = self.path / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            with writing(self.path):
                yield partial
            move_into_place(partial, self.path / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _settings(self) -> dict[str, Any] | None:
        """The settings of the run that the folder holds, or None where there is no folder or an empty one."""
        file = self.path / SETTINGS
        if file.is_file():
            settings: dict[str, Any] = read_object(file, fix="Restore it, or name another folder.")
            return settings
        is_ours(self.path, "a run", SETTINGS, leftovers=(f".{SETTINGS}.partial",))
        return None


def is_ours(out: Path, what: str, *marks: str, leftovers: Collection[str] = ()) -> bool:
    """Whether a folder to write into holds what we have written there; False where it is free.

    Args:
        what: is written there, for messages.
        marks: files that are there then, all of them.
        leftovers: names of all that a run leaves that is killed before the marks are written.

    Raises:
        OutputError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and {path.name for path in out.iterdir()} <= set(leftovers)):
        return False
    if not all((out / mark).is_file() for mark in marks):
        raise foreign(out, what, *marks)
    return True


def occupied(out: Path, what: str, fix: str) -> OutputError:
    """The error where a folder holds what must not be lost."""
    return OutputError(f"the folder contains {what}.", field="out", value=str(out), fix=fix)


def foreign(folder: Path, wanted: str, *marks: str, fix: str = "Use a new folder.") -> OutputError:
    """The error where a folder to write into holds what is not ours.

    Args:
        wanted: what could be there.
        marks: files by which that would be known.
    """
    lacks = f" (no {' and '.join(marks)} in it)" if marks else ""
    return OutputError(f"contains something other than {wanted}{lacks}.", field="out", value=str(folder), fix=fix)


def differences(found: Any, asked: Any, *, within: str = "", path: str = "") -> str:
    """The keys of plain data that differ, with both values.

    Args:
        within: what to leave out where keys begin with it.
    """
    if not (isinstance(found, dict) and isinstance(asked, dict)):
        return f"{path.removeprefix(within)}: {found} there, {asked} here"
    keys = [key for key in {**found, **asked} if found.get(key) != asked.get(key)]
    inner = (
        differences(found.get(key), asked.get(key), within=within, path=f"{path}.{key}" if path else key)
        for key in keys
    )
    return ", ".join(inner)
