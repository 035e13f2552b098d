"""What made a result: the file that says it, the versions of what decides it, where it comes from, and the command."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smolmoe.core.files import expanded, write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.links import leads_out
from smolmoe.errors import CheckpointError

PROVENANCE_FILE = "smolmoe.json"
SCHEMA_VERSION = 1
# What readers take for granted of the file: a type, a list of one shape, or an object by keys ("*": any key). A value
# may be null, but objects in lists are whole. Numbers that JSON has no sign for are written as text.
_NUMBER = "number"
_CHECK = {"name": str, "passed": bool, "measured": _NUMBER, "limit": _NUMBER, "meaning": str}
_CHECKS = {"passed": bool, "checks": [_CHECK]}
_COUNTS = {"total": int, "active": int, "total_without_embeddings": int, "active_without_embeddings": int}
_LOSS = {"loss": _NUMBER, "by_domain": {"*": _NUMBER}, "tokens": int}
_CLAIM = {"kind": str, "reason": str, "granularity": int, "tolerance": _NUMBER, "predicted_ffn_error": [_NUMBER]}
_SOURCE = {"name": str, "folder": str, "revision": str, "sha256": str}
_SHAPE: dict[str, Any] = {
    "stage": str,
    "request": {"*": object},
    "target": str,
    "layout": {
        "experts": int,
        "top_k": int,
        "granularity": int,
        "moe_layers": [int],
        "gate_scale": _NUMBER,
        "shared_neurons": {"*": str},
    },
    "sources": {"*": _SOURCE},
    "source": _SOURCE,
    "origin": {"*": object},
    "parameters": _COUNTS,
    "claim": _CLAIM | {"dtypes": {"*": str}, "band": [_NUMBER]},
    "warnings": [str],
    "router": {"*": object},
    "verification": _CHECKS | {"text": str, "logits": {"dense_loss": _NUMBER, "loss": _NUMBER}},
    "experts": {"claim": _CLAIM, "measured": _CHECKS, "losses": {"*": object}},
    "measured": {"parameters": _COUNTS, "held_out": _LOSS, "start": _LOSS, "tokens": int, "flops": _NUMBER},
    "seed": int,
    "versions": {"*": str},
    "command": str,
}
_KEYS = frozenset(("stage", "request", "target", "layout", "sources", "source", "claim", "router", "verification"))
# Metadata of a model card on the hub that remain valid for models made from it.
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
    values = read_object(path)
    if not ("schema_version" in values or _KEYS & values.keys()):
        raise CheckpointError(
            "was not written by smolmoe.",
            field=PROVENANCE_FILE,
            value=str(path),
            fix="Move it away: the model is then read without it.",
        )
    check_schema(values.setdefault("schema_version", SCHEMA_VERSION), path)
    if (wrong := _misshapen(values, _SHAPE)) is not None:
        key, value = wrong
        raise CheckpointError(
            f"its {key} is {str(value)[:80]!r}, which smolmoe does not write.",
            field=PROVENANCE_FILE,
            value=str(path),
            fix="Move the file away: the model is then read without it.",
        )
    return values


def _misshapen(value: Any, shape: Any, at: str = "") -> tuple[str, Any] | None:
    """The first key whose value is not of its shape, and that value; None where all are."""
    if value is None or shape is object:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return at, value
        rest = shape.get("*", object)
        inner = ((one, shape.get(key, rest), f"{at}.{key}".lstrip(".")) for key, one in value.items())
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return at, value
        whole = shape[0].keys() if isinstance(shape[0], dict) else ()
        for place, one in enumerate(value):
            if whole and not (isinstance(one, dict) and all(one.get(key) is not None for key in whole)):
                return f"{at}[{place}]", one
        inner = ((one, shape[0], f"{at}[{place}]") for place, one in enumerate(value))
    elif shape == _NUMBER:
        fits = type(value) in (int, float) or value in ("nan", "inf", "-inf")
        return None if fits else (at, value)
    else:
        return None if type(value) is shape else (at, value)
    return next((wrong for one, of, where in inner if (wrong := _misshapen(one, of, where)) is not None), None)


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
    return found or {"model": None if expanded(name).exists() else name, **_card(folder / "README.md")}


def _card(path: Path) -> dict[str, Any]:
    """The metadata of a model card that remain valid for derived models; empty if it has none."""
    from smolmoe.core.yaml_text import MOST_BYTES, parse_yaml

    if leads_out(path, path.parent) or not path.is_file():  # a pipe would be waited for
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES)
        head = text.split("---", 2)[1] if text.lstrip().startswith("---") else ""
        values = parse_yaml(head)
    except (OSError, ValueError, IndexError):
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
