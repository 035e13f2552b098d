"""What the experts of a trained MoE do on held-out text: a stage of a pipeline."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe, Seed
from smolmoe.recipe.data import DataRecipe


class ProbeRecipe(Recipe):
    """One probe, on the held-out side of the data that the pipeline trains on, with its page."""

    model: str = Field(description="folder of the MoE")
    data: DataRecipe = Field(description="as in training; its held-out side is judged, some of the rest is fitted on")
    dense: str | None = Field(None, description="folder of the dense model, for the ceiling and the losses beside it")
    against: str | None = Field(None, description="folder of the same MoE at another time, for router saturation")
    before: str | None = Field(None, description="folder of an earlier probe, shown beside this one")
    runs: dict[str, str] = Field(default_factory=dict, description="label -> training run whose curves the page shows")
    tokens: int = Field(20_000, ge=1, description="tokens to judge of each domain, at most")
    loss_tokens: int = Field(4096, ge=1, description="tokens of each domain for each loss")
    losses: bool = Field(True, description="force experts, and take them out, and measure losses")
    device: str = Field("cpu", description="where to compute")
    seed: Seed = Field(0, description="of what is drawn")
    out: Path = Field(description="folder of the probe")
