"""A folder of this process for models that many tests share. Removed when the tests end."""

from __future__ import annotations

import tempfile
from pathlib import Path

_root = tempfile.TemporaryDirectory(prefix="smolmoe-tests-")


def new_folder(name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_root.name))


def remove() -> None:
    """Workers of pytest-xdist end without Python's own cleaning up."""
    _root.cleanup()
