"""Devices: the accepted names, what this machine has, and the name of its hardware."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from smolmoe.errors import RequestError

_WORDS = "auto, cpu, cuda, cuda:N or mps"
_GROUP = Path("/sys/fs/cgroup")
_FORM = re.compile(r"auto|cpu|cuda(:\d+)?|mps")


def kind(device: str) -> str:
    """cpu, cuda or mps."""
    return device.partition(":")[0]


def pick_device(asked: str | None) -> str:
    """The requested device, as torch calls it; for None and auto the fastest: cuda, mps, cpu.

    Raises:
        RequestError: not a device name, or not available; names those that are.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = [*(["cuda"] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if asked in (None, "auto"):
        return there[0]
    assert asked is not None
    if not _FORM.fullmatch(asked):
        raise RequestError(f"must be {_WORDS}.", field="device", value=asked, fix=_use(there, gpus))
    if kind(asked) not in there or (":" in asked and int(asked.partition(":")[2]) >= gpus):
        raise RequestError("is not available on this machine.", field="device", value=asked, fix=_use(there, gpus))
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError) as error:  # present, but broken or in use
        said = str(error).partition("\n")[0].rstrip(".")
        raise RequestError(f"cannot be used: {said}.", field="device", value=asked, fix="Use cpu.") from error
    return asked


def _use(there: list[str], gpus: int) -> str:
    names = [name for device in there for name in ([device] if device != "cuda" or gpus < 2 else _numbered(gpus))]
    return f"Use {', '.join(names)}, which this machine has."


def _numbered(gpus: int) -> list[str]:
    return ["cuda", *(f"cuda:{index}" for index in range(gpus))]


def device_name(device: str) -> str:
    """The name of the hardware."""
    import torch

    if kind(device) == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if kind(device) == "cpu" and info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or os.name


def available_memory() -> int | None:
    """Bytes that a process on this machine can still take, within the limit of its control group; None if unknown."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    lines = info.read_text(encoding="utf-8").splitlines()
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if free is None else min([free, *_group_limits()])


def _group_limits() -> Iterator[int]:
    """What is left of the memory that the control group may use; cached files count as free."""
    for folder, limit, used in (
        (_GROUP, "memory.max", "memory.current"),  # version 2
        (_GROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
    ):
        with suppress(OSError, ValueError):
            most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
            counted = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            yield most - taken + int(counted.get("inactive_file", 0))


def facts(device: str) -> dict[str, Any]:
    """For records: `device` as torch calls it, and the hardware's `name`."""
    return {"device": device, "name": device_name(device)}
