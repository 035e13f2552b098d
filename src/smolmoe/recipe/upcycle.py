"""One conversion of a dense checkpoint into an MoE."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed
from smolmoe.results.verification import QUICK_LEAVES_OUT, VerifyMode

Shared = Literal["none", "full", "residual", "half"] | int
SharedBy = Literal["first", "importance", "rate"]
Subsets = Literal["groups", "complementary", "random"]
Gates = Literal["normalised", "independent"]
Diversify = Literal["none", "noise", "drop", "lora"]
Router = Literal["random", "zero", "domains"]
Centroids = Literal["mean", "kmeans"]
Attention = Literal["average", "base"]
Dtype = Literal["float32", "float16", "bfloat16"]


class UpcycleRecipe(Recipe):
    """One conversion of a dense checkpoint into an MoE. The axes are independent; the plan checks the combination."""

    source: str = Field(description="folder or hub id of the dense model")
    out: Path = Field(description="output folder")
    experts: int = Field(8, description="number of routed experts E")
    top_k: int = Field(2, description="number of experts per token K")
    granularity: int = Field(
        1, description="granularity G: each expert is 1/G of the FFN; groups of G are selected together"
    )
    subsets: Subsets = Field(
        "groups",
        description="neurons of experts that are 1/G of the FFN: groups (consecutive shards, chosen together; exact), "
        "complementary (every G experts share out the neurons at random) or random (sampled for each expert); the last "
        "two choose experts one by one",
    )
    shared: Shared = Field(
        "none", description="shared expert: none, full, residual, half of the neurons, or its width in neurons"
    )
    shared_by: SharedBy = Field(
        "first",
        description="choice of the shared neurons (shared: a width): first, importance (mean |activation| x norm of "
        "the neuron's down column) or rate (share of tokens on which it is active), on text",
    )
    calibration: Path | None = Field(
        None, description="documents that shared neurons are ranked on (default: text from this Python installation)"
    )
    gates: Gates = Field(
        "normalised",
        description="gates of the chosen experts: normalised to sum to 1, or independent (a constant x sigmoid of each "
        "logit), which sum to 1 at zero logits and give a single chosen expert a router gradient",
    )
    diversify: Diversify = Field(
        "none",
        description="method that makes the expert copies differ: none, noise, drop (Drop-Upcycling) or lora (a random "
        "low-rank difference)",
    )
    noise_std: float = Field(
        0.02, description="standard deviation of the noise added to expert weights (diversify: noise)"
    )
    lora_rank: int = Field(8, description="rank of the difference added to each expert matrix (diversify: lora)")
    lora_std: float = Field(
        0.002, description="standard deviation of the difference added to expert weights (diversify: lora)"
    )
    drop_ratio: float = Field(
        0.5, description="fraction of each expert's neurons that are re-initialised (diversify: drop)"
    )
    drop_independent: bool = Field(
        False, description="independent choice of neurons for gate, up and down (diversify: drop)"
    )
    expert: dict[str, str] = Field(
        default_factory=dict, description="specialist to merge as an expert: name and its folder or hub id"
    )
    attention: Attention = Field(
        "average", description="source of all other weights in a merge: average of the specialists, or base"
    )
    router: Router = Field("random", description="router initialisation: random, zero or domains")
    router_std: float | None = Field(
        None,
        description="standard deviation of a random router's rows (default: 0.02, or 0.002 with independent gates)",
    )
    router_data: Path | None = Field(
        None, description='JSONL file with "text" and "domain" in each row (router: domains)'
    )
    router_centroids: Centroids = Field(
        "mean", description="centroids of the domains: mean of each, or k-means over all tokens"
    )
    layers: str = Field("all", description="layers to convert: all, 2-10, every:2 or 0,3,5")
    target: str = Field("auto", description="MoE class of the result; auto prefers a native class")
    runs_in: tuple[str, ...] = Field(
        (), description="engines that must run the result: transformers, vllm, sglang, llama.cpp, mlx, openvino"
    )
    dtype: Dtype | None = Field(None, description="dtype of the weights (default: the source's)")
    device: str = Field(
        "auto", description="device for router initialisation and verification: auto, cpu, cuda, cuda:N, xpu or mps"
    )
    seed: Seed = 0
    text_model: bool = Field(False, description="text model of a multimodal source, taken out of it")
    dequantise: bool = Field(False, description="fp8 weights of the source multiplied by their scales")
    revision: str | None = Field(None, description="hub revision of the source: commit, branch or tag")
    max_shard_size: str = Field("5GB", description="maximum size of a weight file, e.g. 500MB or 5GB")
    overwrite: bool = Field(False, description="replacement of an existing output folder")
    verify: VerifyMode | Literal["none"] = Field(
        "full",
        description="verification of the written files against the claim; quick uses 2 sequences of 6 and leaves out "
        f"{QUICK_LEAVES_OUT}",
    )

    @field_validator("runs_in", mode="before")
    @classmethod
    def _as_on_the_command_line(cls, value: Any) -> Any:
        """A text of names with commas; an empty one is refused like any other."""
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else []
        return parts or value
