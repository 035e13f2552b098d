"""`smolmoe --help` answers at once: it must not import torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HELP = """
import sys
from smolmoe.cli import main
sys.argv = ["smolmoe", *sys.argv[1:], "--help"]
try:
    main()
finally:
    print("heavy:", *sorted({"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
    print(len(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [[], ["upcycle"]], ids=["top", "upcycle"])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, *verb],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    *_, heavy, modules = done.stderr.strip().splitlines()
    assert heavy == "heavy:"
    assert int(modules) < 600  # about 300, in a third of a second; torch and transformers are 3000
