"""What made a result: the versions of what decides it, and the command."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(*more: str) -> dict[str, str]:
    """Versions of what decides the result, and of these packages."""
    found = {"python": sys.version.split()[0]}
    for package in ("smolmoe", "torch", "transformers", "safetensors", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def command() -> str | None:
    """The smolmoe command that this process is; None where it is another program."""
    program = Path(sys.argv[0])
    if program.name.startswith("smolmoe"):
        return " ".join(["smolmoe", *sys.argv[1:]])
    if program.parts[-2:] == ("smolmoe", "__main__.py"):
        return " ".join(["python -m smolmoe", *sys.argv[1:]])
    return None
