"""A model folder as an output: what may be written or replaced, checked before anything is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from smolmoe.core import units
from smolmoe.core.files import followed, nearest, place
from smolmoe.core.links import TEMPLATES
from smolmoe.errors import OutputError

# What a model folder that is replaced may hold, those of a hub among them; anything else is the user's.
_NAMES = (
    *("config.json", "generation_config.json", "smolmoe.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja", TEMPLATES),
    *("modeling_*.py", "configuration_*.py", "tokenization_*.py", "__pycache__"),
    *("README.md", "LICENSE*", "NOTICE*", ".gitattributes", ".cache"),
)
# With what a write that was killed has left beside each: the next one takes its place.
OF_A_MODEL = (*_NAMES, *(f".{name}.partial" for name in _NAMES))


def check_output(out: Path, nbytes: int, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse what must not be written, before anything is.

    Raises:
        OutputError: OUT lies in a source, exists, is not a model folder that may be replaced, or cannot be written.
    """
    target = followed(out)
    for source in (source.resolve() for source in sources):
        if target == source or source in target.parents:
            raise OutputError("lies inside the source.", field="out", value=str(out), fix="Choose another folder.")
        if target in source.parents:
            raise OutputError("contains the source.", field="out", value=str(out), fix="Choose another folder.")
    check_replaceable(out, overwrite=overwrite)
    place(out)
    free = shutil.disk_usage(nearest(target.parent)).free
    if nbytes > free:
        raise OutputError(
            f"needs {units.size(nbytes)}, the disk has {units.size(free)} free.",
            field="out",
            value=str(out),
            fix="Free some space or choose another disk.",
        )


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """See that there is nothing at OUT, or a model folder that is to be replaced.

    Raises:
        OutputError: there is something else, or it was not asked to be replaced.
    """
    target = followed(out)
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise OutputError("exists.", field="out", value=str(out), fix="Use `overwrite=True` to replace it.")
    if not (target / "config.json").is_file() or not any(target.glob("*.safetensors")):
        raise OutputError(
            "exists and is not a model folder, so it is not replaced.",
            field="out",
            value=str(out),
            fix="Choose another folder.",
        )
    others = sorted(path.name for path in target.iterdir() if not any(fnmatch(path.name, one) for one in OF_A_MODEL))
    if others:
        raise OutputError(
            f"the folder holds {', '.join(others[:3])}{' and more' if others[3:] else ''}, which is no part of a model "
            "and would be lost.",
            field="out",
            value=str(out),
            fix="Move it away, or choose another folder.",
        )
