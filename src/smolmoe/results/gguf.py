"""What an export says about a GGUF file, besides its measurements."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolmoe.core import units


@dataclass(frozen=True)
class Importance:
    """The importance matrix that llama.cpp computed, by which it weighs rounding errors.

    Attributes:
        text: the file it was computed on.
        tokens: of the text that llama.cpp read.
        unused: experts that no token of the text chose, over all layers: their weights are rounded without it.
        experts: of all layers.
    """

    text: str
    tokens: int
    unused: int
    experts: int

    @property
    def said(self) -> str:
        """In words."""
        unused = f"; {self.unused} of {self.experts} experts were not chosen" if self.unused else ""
        return f"from {units.tokens(self.tokens)} tokens of {Path(self.text).name}{unused}"


@dataclass(frozen=True)
class Order:
    """Experts ordered by use: the expert with the highest summed gate weight on a text stands first in its layer.

    Experts and router rows are permuted together, so the function stays the same.

    Attributes:
        text: the file on which use was counted.
        experts: MoE layer -> the old index of each expert, in the new order.
        kept: MoE layers that keep their order: experts of equal router rows are chosen by their place.
    """

    text: str
    experts: dict[int, tuple[int, ...]]
    kept: tuple[int, ...]

    @property
    def said(self) -> str:
        """In words."""
        kept = f"; {len(self.kept)} layers with equal router rows keep their order" if self.kept else ""
        return f"the most used on {Path(self.text).name} first, router rows with them: the same function{kept}"


@dataclass(frozen=True)
class Placement:
    """How much of a GGUF file fits a GPU. All sizes are in bytes.

    Attributes:
        vram: of the GPU; `context`: length in tokens for which the KV cache is sized.
        weights: on the GPU besides routed experts: attention, norms, routers, shared experts, dense FFNs, output head.
        experts: routed experts of all layers; `gpu_experts`: of those that stay on the GPU.
        kv_cache: keys and values in float16 for every layer with attention: an upper bound for layers with windows.
        overhead: assumed for the driver and for llama.cpp's buffers.
        n_cpu_moe: the first so many layers keep their experts in the CPU's memory.
        layers: of the model.
        fits: with this many; False if the rest does not fit even without any expert.
    """

    vram: int
    context: int
    weights: int
    experts: int
    gpu_experts: int
    kv_cache: int
    overhead: int
    n_cpu_moe: int
    layers: int
    fits: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"used": self.used, "options": self.options, "override": self.override}

    @property
    def used(self) -> int:
        """Bytes on the GPU."""
        return self.weights + self.gpu_experts + self.kv_cache + self.overhead

    @property
    def options(self) -> str:
        """The options of llama.cpp's programs."""
        return f"-ngl {self.layers + 1} -c {self.context} -ncmoe {self.n_cpu_moe}"

    @property
    def override(self) -> str | None:
        """The same experts as a pattern, for versions without -ncmoe; None if no expert stays in the CPU's memory."""
        if not self.n_cpu_moe:
            return None
        layers = "|".join(map(str, range(self.n_cpu_moe)))
        return rf'-ot "blk\.({layers})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"'
