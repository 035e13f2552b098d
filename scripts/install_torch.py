"""Install torch for this machine: the CPU build where no GPU could use another, so that no CUDA libraries are pulled.

Run it with the Python of the environment that torch shall go into. Standard library only: nothing else is there yet.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MINIMUM = (2, 11)
CPU_BUILD = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANY_BUILD = f"torch>={MINIMUM[0]}.{MINIMUM[1]}"

Pip = Callable[..., subprocess.CompletedProcess[str]]


def pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip, so that the user's own pip configuration applies."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, text=True, capture_output=capture)


def installed() -> bool:
    """Whether a torch that is new enough is there already."""
    try:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= MINIMUM


def has_gpu() -> bool:
    """Whether an NVIDIA driver is present."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def pulls_cuda(requirements: list[str]) -> bool:
    """Whether a torch build with these requirements brings NVIDIA's libraries along."""
    return any(requirement.lower().startswith(("nvidia", "cuda", "triton")) for requirement in requirements)


def configured_index_has_cpu_build(run: Pip = pip) -> bool:
    """Whether pip, as it is configured here, would install a CPU build for `CPU_BUILD` (metadata only, no download)."""
    report = run("install", "--quiet", "--dry-run", "--no-deps", "--report", "-", CPU_BUILD, capture=True)
    if report.returncode != 0:
        return False
    metadata = json.loads(report.stdout)["install"][0]["metadata"]
    return metadata["version"].endswith("+cpu") or not pulls_cuda(metadata.get("requires_dist", []))


def candidates(run: Pip = pip) -> list[list[str]]:
    """What to hand to `pip install`, best first."""
    if platform.system() != "Linux" or has_gpu():
        return [[ANY_BUILD]]
    if configured_index_has_cpu_build(run):
        return [[CPU_BUILD], [ANY_BUILD]]
    official = [f"{CPU_BUILD}+cpu", "--extra-index-url", CPU_INDEX, "--retries", "1", "--timeout", "20"]
    return [official, [ANY_BUILD]]


def main() -> int:
    if installed():
        return 0
    for arguments in candidates():
        print(f"installing {arguments[0]}", file=sys.stderr)
        if pip("install", "--quiet", "--no-compile", *arguments).returncode == 0:
            return 0
        print(f"{arguments[0]} could not be installed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
