"""Free memory and disk of this machine, within the limits of a container."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from smolmoe.core.devices import kind

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
# Folder, limit and use of a container, for both versions of control groups.
_GROUPS = (
    (_GROUP, "memory.max", "memory.current"),
    (_GROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def free_memory(device: str) -> int:
    """Bytes that a new process can use on a device; on a CPU without what other processes hold."""
    if kind(device) == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return min([_of_the_system(), *_of_the_container()])


def _of_the_system() -> int:
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # half of it, where no system says


def _of_the_container() -> Iterator[int]:
    """What is left of the memory that a control group may use; cached files count as free."""
    for folder, limit, use in _GROUPS:
        with suppress(OSError, ValueError):  # no such group, or no limit ("max")
            most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, use))
            lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            yield max(0, most - taken + int(dict(line.split() for line in lines).get("inactive_file", 0)))


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
