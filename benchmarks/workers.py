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
    files = [f"--{name}={getattr(arguments, name)}" for name in FILES]
    run_each(script, arguments.arms, arguments.seeds, arguments.workers, files)


def run_each(script: str, arms: Sequence[str], seeds: Sequence[int], workers: int, options: Sequence[str]) -> None:
    """`run_all` with these options of the script."""

    def start(job: tuple[int, str]) -> None:
        seed, arm = job
        command = [sys.executable, script, "one", *options, "--arms", arm, "--seeds", str(seed)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        said = done.stdout if done.stdout.strip() and not done.returncode else done.stderr
        print(f"{arm} seed {seed}: {said.strip().splitlines()[-1]}", flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(start, [(seed, arm) for seed in seeds for arm in arms]))
