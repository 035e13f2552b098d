"""The files of a folder that are data, those that cannot be read, and those that are not data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smolmoe.data.formats import FORMATS, WHOLE, rows_of, suffix_of
from smolmoe.errors import DataError

logger = logging.getLogger(__name__)

NAMED = 5  # files in a message
# Documentation, checksums, and files that writers of data sets leave.
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|copying|citation|changelog|contributing|authors)([._-].*)?"
    r"|_success|_metadata|_common_metadata|_committed_.*|_started_.*|thumbs\.db|desktop\.ini"
    r"|(md5|sha1|sha256|sha512)sums?(\.txt)?|checksums?(\.\w+)?|.*\.(md5|sha1|sha256|sha512|crc|asc|sig|lock|idx|partial)"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json"
)
_NO_FOLDERS = re.compile(r"__macosx|__pycache__")
# Files that our commands write next to their rows, by the file that identifies the command.
_RECORDS = {
    "journal.ndjson": ("journal.ndjson", "failed.ndjson", "logprobs.ndjson", "report.json", "targets"),
    "indices.json": ("indices.json", "report.json", "held-out.jsonl", "tokenizer"),
    "provenance.json": ("provenance.json",),
    "run.json": ("run.json", "report.json", "summary.json", "samples"),
}


@dataclass(frozen=True)
class DataFiles:
    """The files of a path.

    Attributes:
        files: that are read, in the order of their names.
        unread: possible data that are not read, each with the reason.
        passed_over: not data: hidden files, checksums, documentation, records of the command that wrote the rows.
    """

    files: tuple[Path, ...]
    unread: dict[Path, str]
    passed_over: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "read": len(self.files),
            "not_read": {str(file): reason for file, reason in self.unread.items()},
            "passed_over": [str(file) for file in self.passed_over],
        }


def find_files(path: Path) -> DataFiles:
    """The data files in a folder and its subfolders; a file is returned itself.

    Raises:
        DataError: no text file was found.
    """
    if not path.is_dir():
        return DataFiles((path,), {})
    files, unread, passed_over = list[Path](), dict[Path, str](), list[Path]()
    for file in sorted(_below(path, passed_over)):
        problem = _problem(file)
        if problem is None:
            files.append(file)
        else:
            unread[file] = problem
    if any(suffix_of(file) not in WHOLE and not str(suffix_of(file)).startswith(".txt") for file in files):
        for file in [file for file in files if suffix_of(file) in WHOLE]:
            files.remove(file)
            unread[file] = "a document or script next to files of rows"
    if not files:
        there = f" (not read: {_listed(unread)})" if unread else ""
        raise DataError(
            f"this folder contains no text file{there}.",
            field="path",
            value=str(path),
            fix=f"It must contain files of {FORMATS}.",
        )
    return DataFiles(tuple(files), unread, tuple(passed_over))


def say_unread(found: DataFiles) -> None:
    """Warn of files that are not read."""
    logger.debug("skipped, not data: %s", ", ".join(map(str, found.passed_over)))
    if found.unread:
        total = len(found.files) + len(found.unread)
        verb = "is" if len(found.unread) == 1 else "are"
        logger.warning("%d of %d files %s not read: %s.", len(found.unread), total, verb, _listed(found.unread))


def _listed(unread: dict[Path, str]) -> str:
    names = [f"{file.name} ({reason})" for file, reason in list(unread.items())[:NAMED]]
    more = len(unread) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _below(folder: Path, passed_over: list[Path]) -> Iterator[Path]:
    """Possible data files at any depth, links to folders included, each folder once."""
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        place = Path(here)
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        records = {entry for record, written in _RECORDS.items() if record in names for entry in written}
        kept = [name for name in folders if not _is_none(name, records, _NO_FOLDERS)]
        passed_over += [place / name for name in sorted({*folders} - {*kept})]
        folders[:] = sorted(kept)
        for name in sorted(names):
            if _is_none(name, records, _NO_DATA):
                passed_over.append(place / name)
            else:
                yield place / name


def _is_none(name: str, records: set[str], none: re.Pattern[str]) -> bool:
    return name.startswith(".") or name in records or none.fullmatch(name.lower()) is not None


def _problem(file: Path) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    if not file.is_file():
        return "a broken link" if file.is_symlink() else "not a regular file"
    suffix = suffix_of(file)
    if suffix is None:
        return f"unsupported format: {file.suffix or 'no suffix'}"
    if suffix.startswith(".json.") or suffix == ".json":  # rows, or anything that is written about them
        try:
            if next(rows_of(file, (), ()), None) is None:
                return "no rows"
        except DataError as error:
            return error.message.rstrip(".")
    return None
