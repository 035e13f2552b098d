"""Errors as the command line spells them: the library says `top_k=2`, a user of the command reads --top-k 2."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from typing import Any

from typer.models import OptionInfo

from smolmoe.errors import SmolmoeError

_SPELLED = re.compile(r"`([a-z_][\w.]*)(?:=([^`]*))?`")


def as_options(error: SmolmoeError, parameters: Sequence[inspect.Parameter]) -> None:
    """Rewrite what an error says of keywords as options of a command."""
    known = {one.name: one for one in parameters}
    error.message = _rewritten(error.message, known)
    error.args = (error.message,)
    if error.fix is not None:
        error.fix = _rewritten(error.fix, known)


def _rewritten(text: str, known: dict[str, inspect.Parameter]) -> str:
    return _SPELLED.sub(lambda found: _option(found[0], found[1], found[2], known), text)


def _option(whole: str, name: str, value: str | None, known: dict[str, inspect.Parameter]) -> str:
    if name in known:
        info = known[name].annotation.__metadata__[0]
        if not isinstance(info, OptionInfo):  # an argument
            return name.upper() if value is None else _words(value)[0]
        names = str(info.default).split("/")  # typer keeps the first name in `default`
        if value == "False" and len(names) > 1:
            return str(names[1])
        return str(names[0]) if value in (None, "True") else " ".join(f"{names[0]} {text}" for text in _words(value))
    if value is not None and "set" in known and ("." in name or name == "out"):
        return f"--set {name}={_words(value)[0]}"
    return whole


def _words(value: str | None) -> list[str]:
    """A Python value as the words of a shell; anything else stays as it is."""
    try:
        found: Any = ast.literal_eval(value or "")
    except (SyntaxError, ValueError):
        return [value or ""]
    if isinstance(found, dict):
        return [f"{name}={path}" for name, path in found.items()]
    if isinstance(found, list) and found:
        return [",".join(map(str, part)) if isinstance(part, list) else str(part) for part in found]
    return [str(found)] if isinstance(found, str | int | float) else [value or ""]
