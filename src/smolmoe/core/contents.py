"""What is in an output folder: deleting what smolmoe wrote there, and finding what it did not."""

from __future__ import annotations

import shutil
from pathlib import Path

from smolmoe.errors import OutputError


def emptied(folder: Path) -> None:
    """Remove the content of a folder, which itself may be a link, a mount point, or locked."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def others(folder: Path, *names: str) -> list[Path]:
    """Files and links below a folder that match none of these names, nor are inside a match; sorted."""
    ours = {path for name in (*names, ".*.partial", ".*.smolmoe") for path in folder.glob(name)}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if ours.isdisjoint((path, *path.parents)))


def check_no_others(folder: Path, *names: str, field: str, value: object) -> None:
    """Raises OutputError if a folder that is to be emptied holds files that match none of these names."""
    found = [path.relative_to(folder).as_posix() for path in others(folder, *names)]
    if found:
        raise OutputError(
            f"{folder} holds {', '.join(found[:3])}{' and more' if found[3:] else ''}, which smolmoe did not write "
            "there and which would be lost.",
            field=field,
            value=value,
            fix="Move it away first.",
        )


def remove(folder: Path, *names: str) -> None:
    """Delete what matches these names in a folder; everything else stays.

    Args:
        names: of files and folders, with wildcards. A link is deleted, its target is not.
    """
    for name in names:
        for path in sorted(folder.glob(name)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
