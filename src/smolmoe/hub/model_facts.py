"""Facts about a written checkpoint from its files alone: class, sizes, claim, measurements, origin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from smolmoe.core.checkpoint import FLOAT_DTYPES, open_checkpoint
from smolmoe.core.model_config import expert_counts, read_config
from smolmoe.core.provenance import read_provenance
from smolmoe.families import MOE_TARGETS, MoeTarget
from smolmoe.families.architecture import architecture_of
from smolmoe.families.engines import runs_in

# A path from the root, a home or a drive; not after a scheme or inside a relative path.
_PATH = re.compile(r"(?<![\w.:/\\<-])(?:~?/|[A-Za-z]:[\\/])[^\s'\"`,;|<>()\[\]{}]*[^\s'\"`,;|<>()\[\]{}.]")


@dataclass(frozen=True)
class ModelFacts:
    """A checkpoint folder, read.

    Attributes:
        folder: of the checkpoint.
        config, provenance: contents of config.json and smolmoe.json; the latter is empty without that file.
        total: parameters in the files.
        nbytes: of the weight files.
        dtypes: of the weights, the most frequent first.
        native_class: it loads without custom code.
    """

    folder: Path
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    total: int
    nbytes: int
    dtypes: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> ModelFacts:
        """Read a checkpoint's headers and JSON files; no weight is read.

        Raises:
            SourceError, CheckpointError: not a checkpoint, or of an unknown schema.
        """
        checkpoint = open_checkpoint(folder, field="model")
        config = read_config(checkpoint.folder, "model")
        sizes: dict[str, int] = {}
        for info in checkpoint.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + math.prod(info.shape)
        return cls(
            folder=Path(folder),
            config=config,
            provenance=read_provenance(Path(folder)),
            total=sum(sizes.values()),
            nbytes=sum(path.stat().st_size for path in checkpoint.files()),
            dtypes=[FLOAT_DTYPES.get(code, code) for code in sorted(sizes, key=lambda code: -sizes[code])],
        )

    @property
    def name(self) -> str:
        """The folder's name; for a run's `model` the run's name."""
        folder = self.folder.resolve()
        if folder.name == "best" and (folder.parent / "run.json").is_file():
            return f"{folder.parent.name}-best"
        return folder.parent.name if folder.name == "model" else folder.name

    @property
    def architecture(self) -> str:
        return architecture_of(self.config) or "unknown class"

    @property
    def target(self) -> MoeTarget | None:
        """The MoE class among those that we write; None for others, dense ones among them."""
        return next((target for target in MOE_TARGETS.values() if target.architecture == self.architecture), None)

    @property
    def needs_code(self) -> bool:
        """Whether it loads through Python code in its folder."""
        return self.target is not None and self.target.name == "generic"

    @property
    def experts(self) -> int | None:
        """E; None for a dense model."""
        found = expert_counts(self.config)
        return found and found[0]

    @property
    def top_k(self) -> int | None:
        found = expert_counts(self.config)
        return found and found[1]

    @property
    def active(self) -> int | None:
        """Parameters per token; None if they were not counted."""
        return self.parameters.get("active") or (None if self.experts else self.total)

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Counts from its creation: total, active, and both without embeddings if known."""
        found = dict(self.provenance.get("parameters") or self.measured.get("parameters") or {})
        return {key: found[key] for key in _COUNTED if isinstance(found.get(key), int)}

    @property
    def measured(self) -> Mapping[str, Any]:
        """Later measurements."""
        return self.provenance.get("measured") or {}

    @cached_property
    def runs_in(self) -> dict[str, list[str]]:
        """For each engine the reasons why it cannot compute this model; empty for a class that we do not write."""
        if self.target is None:
            return {}
        return runs_in({**self.config, "model_type": self.target.name}, biased=self.biased)

    @property
    def biased(self) -> bool:
        """Whether the selection biases of some router differ, so that they affect the choice of experts."""
        name = self.target and self.target.names.selection_bias
        if not name:
            return False
        checkpoint = open_checkpoint(self.folder, field="model")
        biases = (checkpoint.read(found) for found in checkpoint.tensors if found.endswith(f".{name}"))
        return any(bool((bias != bias.flatten()[0]).any()) for bias in biases)

    @property
    def stage(self) -> str | None:
        return self.provenance.get("stage")

    @property
    def base(self) -> str | None:
        """Hub id of the original model, if there is one."""
        found = (self.provenance.get("origin") or {}).get("model")
        return found if isinstance(found, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", found) else None


_COUNTED = ("total", "active", "total_without_embeddings", "active_without_embeddings")


def without_places(value: Any) -> Any:
    """Plain data with this machine's absolute paths reduced to their last part: `/home/me/dense` becomes `…/dense`."""
    if isinstance(value, str):
        return _PATH.sub(lambda found: "…/" + re.split(r"[\\/]", found[0].rstrip("/\\"))[-1], value)
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    return value


def places(value: Any, at: str = "") -> list[str]:
    """Keys of values with absolute paths, such as `verification.dense`."""
    if isinstance(value, str):
        return [at] if _PATH.search(value) else []
    if isinstance(value, Mapping):
        return [found for key, inner in value.items() for found in places(inner, f"{at}.{key}" if at else str(key))]
    if isinstance(value, list | tuple):
        return [found for key, inner in enumerate(value) for found in places(inner, f"{at}[{key}]")]
    return []
