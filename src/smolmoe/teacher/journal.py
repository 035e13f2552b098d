"""An append-only file with one line per answer; every answer is on disk before the next step."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from smolmoe.core.files import followed
from smolmoe.core.json_text import parse_json
from smolmoe.core.run_folder import differences, occupied
from smolmoe.errors import DataError, OutputError

FORMAT = 1
FILE = "journal.ndjson"  # not .jsonl: a folder of rows is read by its .jsonl files

_ANSWER = {"text", "finish_reason", "model", "logprobs", "prompt_tokens", "answer_tokens"}  # what rows are written of

logger = logging.getLogger(__name__)


@dataclass
class Totals:
    """Totals of the journal's entries; tokens as far as the endpoint counts them."""

    entries: int = 0
    tries: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    untold: int = 0  # answers without a count of tokens

    def add(self, entry: dict[str, Any]) -> None:
        self.entries += 1
        self.tries += entry["tries"]
        self.prompt_tokens += entry["prompt_tokens"] or 0
        self.answer_tokens += entry["answer_tokens"] or 0
        self.untold += "answer" in entry and entry["answer_tokens"] is None


class Journal:
    """The questions and their results; the last entry of a question counts; answers are never replaced.

    A line is on disk (fsync) when `add` returns. An incomplete last line, after a kill or on a full disk, is
    removed when the journal is opened again: its question counts as not asked.
    """

    def __init__(self, path: Path, fd: int):
        self.path = path
        self.answered: dict[str, int] = {}  # id -> offset of its line
        self.failed: dict[str, int] = {}
        self.totals = Totals()
        self._fd = fd
        self._end = 0
        self._new = False

    @classmethod
    def open(cls, path: Path, options: dict[str, Any], *, resume: bool) -> Self:
        """Open the journal there, or begin one; its folder is held.

        Args:
            options: that determine the answers.

        Raises:
            OutputError: it contains answers and `resume` is not set, or was started with other options.
            DataError: a line in it, not the last one, is corrupt.
        """
        followed(path.parent).mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        journal = cls(path, fd)
        try:
            journal._begin(options, resume)
        except BaseException:
            journal.close()
            raise
        return journal

    def _begin(self, options: dict[str, Any], resume: bool) -> None:
        begun = self._read()
        if not self.totals.entries:
            os.ftruncate(self._fd, 0)
            self._end = 0
            self._new = True
            self._append({"format": FORMAT, "options": options})
            _sync_folder(self.path.parent)
        elif not resume:
            held = f"{len(self.answered)} answers already"
            raise occupied(self.path.parent, held, "Use `resume=True`, or name another folder.")
        elif begun != options:
            raise OutputError(
                f"the answers there were requested with different options ({differences(begun, options)}).",
                field="out",
                value=str(self.path.parent),
                fix="Resume with the same options, or choose another folder.",
            )

    def _read(self) -> dict[str, Any]:
        """Read the journal, remove an incomplete last line, and return the options it was started with."""
        options: dict[str, Any] = {}
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    logger.warning("%s: removed an incomplete last line; its prompt is asked again", self.path)
                    os.ftruncate(self._fd, self._end)
                    break
                try:
                    entry = parse_json(line)
                    if number:
                        self._take(entry)
                    else:
                        options = entry["options"]
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(
                        f"line {number + 1} is not an entry of a journal.",
                        field="journal",
                        value=str(self.path),
                        fix="Restore the file; if only this line is damaged, delete it, and its prompt is asked again.",
                    ) from error
                self._end += len(line)
        return options

    def _take(self, entry: dict[str, Any]) -> None:
        name = entry["id"]
        if "answer" in entry:
            if not isinstance(entry["answer"]["text"], str) or not entry["answer"].keys() >= _ANSWER:
                raise TypeError("an answer has a text and the endpoint's metadata")
            self.answered[name] = self._end
            self.failed.pop(name, None)
        else:
            self.failed[name] = self._end
        self.totals.add(entry)

    def add(self, entry: dict[str, Any]) -> None:
        """Write an entry: `id`, `tries`, `prompt_tokens`, `answer_tokens`, and an `answer` or a `failure`."""
        self._take(entry)
        self._append(entry)

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fsync(self._fd)
        self._end += len(line)

    def get(self, name: str) -> dict[str, Any]:
        """The valid entry of a question."""
        at = self.answered.get(name, self.failed.get(name))
        assert at is not None
        with self.path.open("rb") as file:
            file.seek(at)
            entry: dict[str, Any] = parse_json(file.readline())
        return entry

    def close(self) -> None:
        """Close the journal; a new one without entries is deleted."""
        if self._new and not self.totals.entries:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


def _sync_folder(folder: Path) -> None:
    """Write a folder, which contains the name of a new file, to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
