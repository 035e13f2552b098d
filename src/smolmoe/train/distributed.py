"""Several processes: how many there are."""

from __future__ import annotations

import os


def world_size() -> int:
    """Processes that share the work, as `torchrun` and `accelerate launch` say."""
    return int(os.environ.get("WORLD_SIZE", "1"))
