"""`smolmoe --help` answers at once: it must not import torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

HELP = """
import sys
from smolmoe.cli import main
sys.argv = ["smolmoe", *sys.argv[1:], "--help"]
try:
    main()
finally:
    print("heavy:", *sorted({"torch", "transformers", "matplotlib", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [[], ["upcycle"]], ids=["top", "upcycle"])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", HELP, *verb],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1"},
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == "heavy:"
    assert seconds < 10, f"--help took {seconds:.1f} s"
