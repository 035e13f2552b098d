"""What a measurement was taken on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def record(name: str, figures: dict[str, Any], text: str) -> None:
    """Write `results/NAME.json`, and `text` with the machine below it between NAME's markers in README.md.

    `figures["machine"]` is what `describe` returned, with what the benchmark added.
    """
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    put_between(HERE / "README.md", name, f"{text}\n\nMeasured on: {in_words(figures['machine'])}.")


def in_words(facts: Mapping[str, object], *but: str) -> str:
    """What `describe` returned, or settings, in a line; without the facts that are named."""
    return ", ".join(f"{key} {value}" for key, value in facts.items() if key not in but)


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between NAME's markers in a page."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def describe() -> dict[str, object]:
    """The processor, memory, versions and commit, as plain data."""
    return {
        "cpu": _cpu_model(),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "safetensors": importlib.metadata.version("safetensors"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit of the checkout, with `+changes` where the measured files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return "none" if head is None else head + ("+changes" if _git("status", "--porcelain", "src") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", HERE.parent, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
