"""Devices: the accepted names, what this machine has, and the name of its hardware."""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smolmoe.errors import RequestError

logger = logging.getLogger(__name__)

_WORDS = "auto, cpu, cuda, cuda:N, xpu or mps"
_FORM = re.compile(r"auto|cpu|cuda(:\d+)?|xpu(:\d+)?|mps")


def kind(device: str) -> str:
    """cpu, cuda, xpu or mps."""
    return device.partition(":")[0]


def available() -> dict[str, int]:
    """The kinds of devices that this machine has, the fastest first, with their numbers."""
    import torch

    found = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "xpu": torch.xpu.device_count() if torch.xpu.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    return {name: number for name, number in found.items() if number}


def pick_device(asked: str) -> str:
    """The requested device, as torch calls it; for auto the fastest that works: cuda, xpu, mps, cpu. It is logged.

    Raises:
        RequestError: not a device name, or not available; names those that are.
    """
    there = available()
    if not _FORM.fullmatch(asked):
        raise RequestError(f"must be {_WORDS}.", field="device", value=asked, fix=_use(there))
    device = _fastest(there) if asked == "auto" else asked
    if int(device.partition(":")[2] or 0) >= there.get(kind(device), 0):
        raise RequestError("is not available on this machine.", field="device", value=asked, fix=_use(there))
    if asked != "auto" and (problem := problem_of(device)) is not None:
        raise RequestError(f"cannot be used: {problem}.", field="device", value=asked, fix="Use cpu.")
    logger.info("device: %s", described(device))
    return device


def _fastest(there: Iterable[str]) -> str:
    """The first device that works."""
    for device in there:
        problem = problem_of(device)
        if problem is None:
            return device
        logger.warning("%s is here, but cannot be used: %s.", device, problem)
    return "cpu"


def problem_of(device: str) -> str | None:
    """Why a device that is here cannot be used: it is broken, or in use."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        return str(error).partition("\n")[0].rstrip(".")
    return None


def _use(there: Mapping[str, int]) -> str:
    names = [
        name
        for device, number in there.items()
        for name in (device, *(f"{device}:{index}" for index in range(number if number > 1 else 0)))
    ]
    return f"Use {', '.join(names)}, which this machine has."


def described(device: str) -> str:
    """A device with the name of its hardware, and the number of threads of a CPU."""
    import torch

    threads = torch.get_num_threads()
    number = f", {threads} thread{'s' * (threads > 1)}" if device == "cpu" else ""
    return f"{device} ({device_name(device)}{number})"


def device_name(device: str) -> str:
    """The name of the hardware."""
    import torch

    if kind(device) == "cuda":
        return torch.cuda.get_device_name(device)
    if kind(device) == "xpu":
        return torch.xpu.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if kind(device) == "cpu" and info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or os.name


def in_double(tensor: Any) -> Any:
    """A tensor in float64; on the CPU if it is on MPS, which has no such type."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def facts(device: str) -> dict[str, Any]:
    """For records: `device` as torch calls it, and the hardware's `name`."""
    return {"device": device, "name": device_name(device)}
