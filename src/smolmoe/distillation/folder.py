"""The folder of a cache: protection against overwriting, and checks of a resumed request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smolmoe.core import refusals, units
from smolmoe.core.contents import emptied
from smolmoe.core.run_folder import begin_folder, differences
from smolmoe.core.words import listed
from smolmoe.data.targets import ABOUT, REQUEST, TOKENIZER, file_sizes
from smolmoe.data.tokens import TokenStore
from smolmoe.distillation.options import CacheOptions
from smolmoe.errors import OutputError

TEXT = ".text"  # the tokenised text, until the cache is finished
_PARTS = {"teacher": "the teacher", "tokenizer": "its tokenizer", "text": "the text", "options": "the options"}


def open_folder(out: Path, request: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Begin or continue a cache, as `begin_folder` does."""
    begin_folder(
        out,
        request,
        what="a teacher's cache",
        record=REQUEST,
        made=(ABOUT, TOKENIZER, "shard-*", TEXT),
        finished=ABOUT,
        resume=resume,
        overwrite=overwrite,
        explain=_changed,
    )


def _changed(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """The parts of a request that differ; of the options, which."""
    parts = [said for key, said in _PARTS.items() if found.get(key) != asked[key]]
    options = differences(found.get("options") or {}, asked["options"])
    return f"{listed(parts)} changed" + (f": {options}" if options else "")


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
    with refusals.writing(folder, said="the cache cannot be written", fix=fix):
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
