"""Arms and seeds of a benchmark, each in a process of one thread, so many at once as there are workers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILES = ("model", "data", "validation")


def parse_arguments(about: str | None, arms: Sequence[str], further: Sequence[str] = ()) -> argparse.Namespace:
    """`run`, `one` or `table`, the model and texts, and which arms and seeds.

    Args:
        arms: that are run where none is named.
        further: that can be named.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "table"))
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=[*arms, *further])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def run_all(script: str, arguments: argparse.Namespace) -> None:
    """Call the script's `one` for every arm and seed, and print what each said last."""

    def start(job: tuple[str, int]) -> None:
        arm, seed = job
        files = [f"--{name}={getattr(arguments, name)}" for name in FILES]
        command = [sys.executable, script, "one", *files, "--arms", arm, "--seeds", str(seed)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        said = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
        print(f"{arm} seed {seed}: {said}", flush=True)

    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(start, [(arm, seed) for seed in arguments.seeds for arm in arguments.arms]))
