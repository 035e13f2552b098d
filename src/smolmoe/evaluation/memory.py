"""The most memory that a process, or its GPU, held at a time."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from smolmoe.core.allocator import release_memory


class PeakMemory:
    """Bytes held on a device: a GPU's allocations, or the resident memory of the process for the CPU.

    The high-water mark of a process can be reset on Linux; elsewhere it counts from the start of the process.

    Attributes:
        held: at the last reset; the first is at construction.
    """

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Release free memory, and start measuring."""
        release_memory()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            self.held = torch.cuda.memory_allocated(self._device)
            return
        if _STATUS.is_file():
            _reset_mark()
            self.held = _status("VmRSS")
        else:
            self.held = _largest()

    def peak(self) -> int:
        """The maximum since the last reset."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(_status("VmHWM"), self.held) if _STATUS.is_file() else _largest()


_STATUS = Path("/proc/self/status")
_MARK = b"5"  # for clear_refs: reset the high-water mark to the resident size


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_bytes(_MARK)
    except OSError:  # not allowed in some containers; the mark then counts from the start of the process
        return


def _largest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
