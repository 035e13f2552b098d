"""How this program is called in the user's shell: a command that is shown can be typed as it stands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

NAME = "smolmoe"
_COMMAND = re.compile(r"`smolmoe(?= [a-z-])")


@cache
def me() -> str:
    """The words that call this program: `smolmoe` if the shell finds it, else its path or `python -m smolmoe`."""
    script = _script()
    if script is None or Path(sys.argv[0]).name == "__main__.py":
        return f"{_path_of(Path(sys.executable))} -m {NAME}"
    found = shutil.which(NAME)
    if found is not None and _is(found, script):
        return NAME
    return _path_of(Path(sys.argv[0]) if _is(sys.argv[0], script) else script)  # a link may lead to it


def as_typed(text: str) -> str:
    """A text whose commands (`smolmoe verb ...`, in backticks) call this program."""
    return _COMMAND.sub(lambda _: f"`{me()}", text)


def typed(command: str) -> str:
    """A command, `smolmoe verb ...`, as it calls this program."""
    return f"{me()}{command.removeprefix(NAME)}"


def print_next(commands: Iterable[tuple[Sequence[object], str]]) -> None:
    """The end of a long command: what to type next.

    Args:
        commands: the words after the program's name, and their purpose.
    """
    print("\nWhat to type next")
    for words, purpose in commands:
        print(f"  {me()} {shlex.join(map(str, words))}\n      {purpose}")


def _is(path: str, script: Path) -> bool:
    return os.path.realpath(path) == os.path.realpath(script)


def _script() -> Path | None:
    """The `smolmoe` that was installed with this Python, if any."""
    names = (NAME, f"{NAME}.exe")
    folder = Path(sysconfig.get_path("scripts"))
    return next((path for name in names if (path := folder / name).is_file()), None)


def _path_of(program: Path) -> str:
    """A program as the shell finds it from the current folder."""
    found = shutil.which(program.name)
    if found is not None and os.path.abspath(found) == os.path.abspath(program):
        return program.name
    here, path = Path.cwd(), Path(os.path.abspath(program))
    if not path.is_relative_to(here):
        return shlex.quote(str(path))
    inside = path.relative_to(here)
    return shlex.quote(str(inside) if inside.parent.name else f"./{inside}")
