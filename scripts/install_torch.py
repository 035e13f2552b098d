"""Install torch for this machine: the CPU build where no GPU could use another, so that no CUDA libraries are pulled.

    python scripts/install_torch.py [VERSION | newest]      without an argument: the version in requirements.lock

Run it with the Python of the environment that torch goes into. Standard library only: nothing else is there yet.
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

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

Pip = Callable[..., subprocess.CompletedProcess[str]]


def pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip, so that the user's own pip configuration applies."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, text=True, capture_output=capture)


def wanted(argument: str | None) -> str:
    """The requirement that an argument of this script stands for."""
    if argument == "newest":
        return "torch"
    if argument is not None:
        return f"torch=={argument}"
    return next(line.split()[0] for line in LOCK.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))


def installed(requirement: str) -> bool:
    """Whether this torch is there already, in any build."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement == f"torch=={version.split('+')[0]}"


def has_gpu() -> bool:
    """Whether an NVIDIA driver is present."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def pulls_cuda(requirements: list[str]) -> bool:
    """Whether a torch build with these requirements brings NVIDIA's libraries along."""
    return any(requirement.lower().startswith(("nvidia", "cuda", "triton")) for requirement in requirements)


def configured_index_has_cpu_build(requirement: str, run: Pip = pip) -> bool:
    """Whether pip, as it is configured here, would install a CPU build (metadata only, no download)."""
    report = run("install", "--quiet", "--dry-run", "--no-deps", "--report", "-", requirement, capture=True)
    if report.returncode != 0:
        return False
    metadata = json.loads(report.stdout)["install"][0]["metadata"]
    return metadata["version"].endswith("+cpu") or not pulls_cuda(metadata.get("requires_dist", []))


def candidates(requirement: str, run: Pip = pip) -> list[list[str]]:
    """What to hand to `pip install`, best first."""
    if platform.system() != "Linux" or has_gpu() or configured_index_has_cpu_build(requirement, run):
        return [[requirement]]
    official = ["--retries", "1", "--timeout", "20"]
    if "==" in requirement:
        return [[f"{requirement}+cpu", "--extra-index-url", CPU_INDEX, *official], [requirement]]
    return [[requirement, "--index-url", CPU_INDEX, *official], [requirement]]


def main(argument: str | None = None) -> int:
    requirement = wanted(argument)
    if installed(requirement):
        return 0
    for arguments in candidates(requirement):
        print(f"installing {arguments[0]}", file=sys.stderr)
        if pip("install", "--quiet", "--no-compile", *arguments).returncode == 0:
            return 0
        print(f"{arguments[0]} could not be installed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
