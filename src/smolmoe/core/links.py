"""The files of a source: only its own. A link out of the folder is neither read nor copied.

Otherwise a downloaded model could cause any file of this machine to be copied into an output, and then published.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from smolmoe.errors import SourceError

TEMPLATES = "additional_chat_templates"
# What smolmoe or transformers may read of a model folder.
_READ = (
    *("*.json", "*.safetensors", "*.jinja", "*.py", TEMPLATES),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
)


def check_files(folder: Path, patterns: Sequence[str] = (), *, field: str = "source") -> None:
    """Check that every file that is read of a model is in its folder.

    Args:
        patterns: names of other files that will be read.

    Raises:
        SourceError: a link leads out of it, or something is neither a file nor a folder; names it.
    """
    for path in _matching(folder, (*_READ, *patterns)):
        check_file(path, folder, field=field)


def check_file(path: Path, folder: Path, *, field: str = "source") -> None:
    """Check that a file is in the folder.

    Raises:
        SourceError: as `check_files`.
    """
    if leads_out(path, folder):
        raise SourceError(
            f"{path.relative_to(folder)} is a link out of the folder, to {os.path.realpath(path)}: it is neither read "
            "nor copied.",
            field=field,
            value=str(folder),
            fix="Put the file itself into the folder, or remove the link.",
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise SourceError(f"{path.relative_to(folder)} is not a regular file.", field=field, value=str(folder))


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link out of it. Those of a hub cache's snapshot to its own blobs are not."""
    target, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if target.is_relative_to(root):
        return False
    snapshot = next((place for place in (root, *root.parents) if place.parent.name == "snapshots"), None)
    return snapshot is None or target.parent != snapshot.parent.parent / "blobs"


def copy_files(folder: Path, out: Path, patterns: Sequence[str], *, field: str = "source") -> None:
    """Copy a model's files of these names, and its additional chat templates, into another folder.

    Raises:
        SourceError: as `check_files`.
    """
    for path in _matching(folder, (*patterns, TEMPLATES)):
        check_file(path, folder, field=field)
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """Entries of these names, in order; after the templates' folder what is in it."""
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in patterns):
            yield path
            if path.name == TEMPLATES and path.is_dir() and not leads_out(path, folder):
                yield from sorted(path.glob("*.jinja"))
