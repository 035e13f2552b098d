"""The folder of a cache: protection against overwriting, and checks of a resumed request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smolmoe.core import files, units
from smolmoe.core.files import emptied, remove
from smolmoe.core.json_text import read_object
from smolmoe.core.run_folder import RESUME_OR_OVERWRITE, differences, is_ours, occupied
from smolmoe.data.targets import ABOUT, REQUEST, TOKENIZER, file_sizes
from smolmoe.data.tokens import TokenStore
from smolmoe.distillation.options import CacheOptions
from smolmoe.errors import OutputError

TEXT = ".text"  # the tokenised text, until the cache is finished
_PARTS = {"teacher": "the teacher", "tokenizer": "its tokenizer", "text": "the text", "options": "the options"}


def open_folder(out: Path, request: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Check that the folder may be written, and delete what will be overwritten.

    Raises:
        OutputError: it contains something else, a cache that could be lost, or one of another request.
    """
    if not is_ours(out, "a teacher's cache", REQUEST, leftovers=(f".{REQUEST}.partial",)):
        return
    if overwrite:
        remove(out, ABOUT, TOKENIZER, "shard-*", TEXT, ".*.partial")  # the request is replaced later
    elif resume:
        _check_same(read_object(out / REQUEST, fix="Start over with `overwrite=True`."), request, out)
        for partial in out.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
    else:
        state = "finished" if (out / ABOUT).is_file() else "unfinished"
        raise occupied(out, f"a cache ({state})", RESUME_OR_OVERWRITE)


def _check_same(found: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    changed = [said for key, said in _PARTS.items() if found.get(key) != asked[key]]
    if not changed:
        return
    before, now = found.get("options"), asked["options"]
    before = before if isinstance(before, dict) else {}
    options = differences(before, now)
    said = f"{' and '.join(changed)} changed" + (f" ({options})" if options else "")
    raise OutputError(
        f"the cache there was started with another request: {said}.",
        field="out",
        value=str(out),
        fix="Resume with the same one, start over with `overwrite=True`, or name another folder.",
    )


def check_room(out: Path, store: TokenStore, options: CacheOptions, vocabulary: int) -> None:
    """Raises OutputError if the disk has too little space for the rest."""
    there = sum(sum(file_sizes(shard).values()) for shard in out.glob("shard-*"))
    needed, free = options.most_bytes(vocabulary) * store.tokens - there, shutil.disk_usage(out).free
    if options.kind == "top_k" and needed > free:
        raise OutputError(
            f"needs {units.size(needed)}, {units.size(free)} are free.",
            field="out",
            value=str(out),
            fix="Free some space, name another disk, or keep fewer entries (`top_k`, `sampled`).",
        )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, failed writes become an OutputError."""
    fix = "Free some space, then use `resume=True`."
    with files.writing(folder, said="the cache cannot be written", fix=fix):
        yield


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """If the block fails, an initially empty folder is emptied again."""
    was_empty = not folder.exists() or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if was_empty:
            emptied(folder)
        raise
