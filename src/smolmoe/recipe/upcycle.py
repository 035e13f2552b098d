"""One conversion of a dense checkpoint into an MoE."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from smolmoe.recipe.base import Recipe, Seed

Shared = Literal["none", "full", "residual"] | int
Diversify = Literal["none", "noise", "drop"]
Router = Literal["random", "zero", "domains"]
Centroids = Literal["mean", "kmeans"]
Attention = Literal["average", "base"]
Dtype = Literal["float32", "float16", "bfloat16"]


class UpcycleRecipe(Recipe):
    """One conversion of a dense checkpoint into an MoE. The axes are independent; the plan checks the combination."""

    source: str = Field(description="local folder or hub id of the dense model")
    out: Path = Field(description="folder to write")
    experts: int = Field(8, description="routed experts E")
    top_k: int = Field(2, description="experts per token K")
    granularity: int = Field(
        1, description="G: each expert is 1/G of the FFN, and whole groups of G are chosen together"
    )
    shared: Shared = Field("none", description="shared expert: none, full, residual, or a width in neurons")
    diversify: Diversify = Field("none", description="what makes copies differ: none, noise, drop")
    noise_std: float = Field(0.02, description="standard deviation of the noise added to every expert weight")
    drop_ratio: float = Field(0.5, description="share of each expert's neurons drawn anew by drop")
    drop_independent: bool = Field(False, description="drop: draw the neurons of gate, up and down independently")
    expert: dict[str, str] = Field(default_factory=dict, description="specialists to merge: name -> folder or hub id")
    attention: Attention = Field("average", description="merge: everything but the FFNs averaged, or from the base")
    router: Router = Field("random", description="router init: random (std 0.02), zero, or domains")
    router_data: Path | None = Field(None, description="domain-tagged JSONL for --router domains")
    router_centroids: Centroids = Field("mean", description="domains: mean of each domain, or k-means over all tokens")
    layers: str = Field("all", description="layers that become MoE: all, 2-10, every:2, or 0,3,5")
    target: Literal[
        "auto", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoeshared", "glm4_moe", "flex_olmo", "generic"
    ] = Field("auto", description="MoE class of the result; auto prefers a native one")
    dtype: Dtype | None = Field(None, description="dtype of the files (default: the source's)")
    device: str = Field("cpu", description="device for router initialisation and verification")
    seed: Seed = Field(0, description="of every random draw")
    revision: str | None = Field(None, description="hub revision of the source")
    max_shard_size: str = Field("5GB", description="largest file, e.g. 500MB or 5GB")
    overwrite: bool = Field(False, description="replace OUT if it is there")
    verify: bool = Field(True, description="reload what was written and measure it against the claim")
