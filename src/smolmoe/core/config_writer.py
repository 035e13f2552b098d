"""config.json written so that engines which know only older keys read it rightly, too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json
from smolmoe.core.json_text import read_object
from smolmoe.core.model_config import CONFIG


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a folder's config.json."""
    write_json(folder / CONFIG, with_older_keys(config))


def complete_config(folder: Path) -> None:
    """Add the older keys to a config.json that transformers wrote, which leaves them out."""
    write_config(folder, read_object(folder / CONFIG))


def with_older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its rotary base at the top level as well.

    mlx-lm and older engines read `rope_theta` there and know nothing of `rope_parameters`: without it they take
    their default base, silently. transformers prefers `rope_parameters`. `rope_scaling` stays null, since anything else
    would replace `rope_parameters` in transformers.
    """
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None  # none where each type of layer has its own
    return {**config, "rope_theta": theta, "rope_scaling": None} if theta is not None else dict(config)
