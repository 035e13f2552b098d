"""init: a commented recipe."""

from __future__ import annotations

import shlex
from pathlib import Path

from smolmoe.cli.calling import typed
from smolmoe.cli.command import Command, Given
from smolmoe.core.yaml_text import parse_yaml
from smolmoe.pipeline.specialise import init
from smolmoe.recipe.files import COMMANDS, kind_of


def _show(out: Path, given: Given) -> None:
    command = typed(COMMANDS[kind_of(parse_yaml(out.read_text(encoding="utf-8")))])
    file = shlex.quote(str(out))
    print(f"{out}\nrun it with `{command} {file}`, or look first: `{command} {file} --dry-run`")


COMMAND = Command(
    init,
    _show,
    as_options=("data", "out"),
    names={"out": ("--out", "-o")},
    to_json=lambda out, given: {"recipe": str(out)},
)
