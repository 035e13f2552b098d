"""What made a result: the file that says it, the versions of what decides it, where it comes from, and the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError
from smolmoe.files import write_json
from smolmoe.links import leads_out

PROVENANCE_FILE = "smolmoe.json"
SCHEMA_VERSION = 1
_KEYS = frozenset(("stage", "request", "target", "layout", "sources", "source", "claim", "router", "verification"))
# What a model card on the hub says of a model that stays true of what is made of it.
_KEPT = ("license", "license_name", "license_link", "language", "datasets")


def read_provenance(folder: Path) -> dict[str, Any]:
    """What a folder's smolmoe.json says, as schema 1; empty where there is no such file.

    A file without a version is one from before versions were written: its keys are those of schema 1.

    Raises:
        CheckpointError: it is no JSON, not ours, or of a schema that this version does not read.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not readable: {error}.", field=PROVENANCE_FILE, value=str(path)) from error
    if not isinstance(values, dict) or not ("schema_version" in values or _KEYS & values.keys()):
        raise CheckpointError(
            "was not written by smolmoe.",
            field=PROVENANCE_FILE,
            value=str(path),
            fix="Move it away: the model is then read without it.",
        )
    check_schema(values.setdefault("schema_version", SCHEMA_VERSION), path)
    return values


def check_schema(found: object, path: Path) -> None:
    """See that a file's schema is the one that this version reads.

    Raises:
        CheckpointError: naming both versions.
    """
    if found == SCHEMA_VERSION and not isinstance(found, bool):
        return
    newer = isinstance(found, int) and found > SCHEMA_VERSION
    ours = _installed("smolmoe")
    raise CheckpointError(
        f"is of schema {found!r}; this smolmoe ({ours}) reads schema {SCHEMA_VERSION}.",
        field=path.name,
        value=str(path),
        fix="Install the smolmoe that wrote it, or a later one."
        if newer
        else "Make it again: no released version wrote this schema.",
    )


def record_measured(folder: Path, measured: Mapping[str, Any]) -> None:
    """Add what was measured of a model after it was written to its smolmoe.json."""
    write_json(folder / PROVENANCE_FILE, read_provenance(folder) | {"measured": dict(measured)})


def origin(name: str, folder: Path) -> dict[str, Any]:
    """What is known of the model at the root of a checkpoint: `model` (a hub id or None), licence, languages, data.

    Of a checkpoint that we wrote, what its smolmoe.json says; of another, what its card says.

    Args:
        name: as it was asked for: a hub id, or a path.
        folder: where its files are.
    """
    found: dict[str, Any] = dict(read_provenance(folder).get("origin") or {})
    return found or {"model": None if Path(name).expanduser().exists() else name, **_card(folder / "README.md")}


def _card(path: Path) -> dict[str, Any]:
    """The metadata of a model card, as far as they stay true of what is made of the model; empty where it has none."""
    import yaml

    if leads_out(path, path.parent):
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        head = text.split("---", 2)[1] if text.lstrip().startswith("---") else ""
        values = yaml.safe_load(head)
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    return {key: values[key] for key in _KEPT if values.get(key)} if isinstance(values, dict) else {}


def versions(*more: str) -> dict[str, str]:
    """Versions of what decides the result, and of these packages."""
    found = {"python": sys.version.split()[0]}
    for package in ("smolmoe", "torch", "transformers", "safetensors", *more):
        found[package] = _installed(package)
    return found


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def command() -> str | None:
    """The smolmoe command that this process is; None where it is another program."""
    program = Path(sys.argv[0])
    if program.name.startswith("smolmoe"):
        return " ".join(["smolmoe", *sys.argv[1:]])
    if program.parts[-2:] == ("smolmoe", "__main__.py"):
        return " ".join(["python -m smolmoe", *sys.argv[1:]])
    return None
