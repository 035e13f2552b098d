"""Files written beside their place and renamed into it when whole, and deleted by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def remove(folder: Path, *names: str) -> None:
    """Delete what is called so in a folder, where it is there; everything else stays.

    Args:
        names: of files and folders, with wildcards. A link is deleted, what it leads to is not.
    """
    for name in names:
        for path in sorted(folder.glob(name)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
