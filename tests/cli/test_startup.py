"""`smolmoe --help` answers at once: it must import no recipe, and no command may import torch to show its help."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import sys
from smolmoe.cli import main
sys.argv = ["smolmoe", *sys.argv[1:]]
try:
    main()
finally:
    print("imported:", *sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "matplotlib", "numpy", "rich", "yaml"}


def imported(*arguments: str, code: int = 0) -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == code, done.stderr
    label, *modules = done.stderr.strip().splitlines()[-1].split()
    assert label == "imported:"
    return set(modules)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["align", "--help"], 0), (["trian"], 2)],
    ids=["help", "version", "group", "unknown command"],
)
def test_what_names_no_command_imports_no_recipe(arguments: list[str], code: int) -> None:
    modules = imported(*arguments, code=code)
    assert not HEAVY & modules
    assert not [name for name in modules if name.startswith(("smolmoe.recipe", "smolmoe.verbs", "smolmoe.surgery"))]


@pytest.mark.parametrize("command", ["upcycle", "train", "prune"])
def test_the_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    modules = imported(command, "--help")
    assert not HEAVY & modules
    assert "smolmoe.surgery.tensors.writer" not in modules
    assert len(modules) < 600  # about 300; torch and transformers are 3000


def test_importing_smolmoe_imports_nothing_else() -> None:
    code = "import sys, smolmoe; print(*(name for name in sys.modules if name.startswith('smolmoe.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
