"""What the experts of a trained MoE do on text of several domains."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.data import DataRecipe
from smolmoe.recipe.words import Device, Seed

DRAWS = 200  # shuffles of the domains


class _Limits(Recipe):
    """How much is measured, whatever the text."""

    document_tokens: int = Field(4096, ge=2, description="maximum number of tokens per document")
    probe_tokens: int = Field(4096, ge=1, description="number of tokens per domain for fitting linear probes")
    losses: bool = Field(True, description="losses with experts forced and with experts removed")
    loss_tokens: int = Field(4096, ge=1, description="number of tokens per domain for each of these losses")
    permutations: int = Field(DRAWS, ge=1, description="number of domain permutations for the chance baseline")
    seed: Seed = Field(0, description="random seed")


class ProbeOptions(_Limits):
    """How to probe on a text with a domain for each row."""

    by: str = Field("domain", description="column with the domain")
    tokens: int | None = Field(None, ge=1, description="maximum number of tokens per domain (default: all)")
    length: int = Field(256, ge=2, description="maximum sequence length, in tokens")


class _Probe(_Limits):
    """What every probe reads and writes."""

    model: str = Field(description="folder of the MoE")
    dense: str | None = Field(None, description="folder of its dense source, for the ceiling and as a baseline")
    against: str | None = Field(None, description="folder of another checkpoint of the MoE, for router saturation")
    before: str | None = Field(None, description="folder of an earlier probe, shown in the page for comparison")
    runs: dict[str, str] = Field(default_factory=dict, description="training run shown in the page: label and folder")
    device: Device = "auto"
    out: Path = Field(description="output folder for probe.json, index.html and the figures")


class ProbeRecipe(_Probe):
    """A probe on the held-out side of the data that a pipeline trains on."""

    data: DataRecipe = Field(description="as in training; its held-out side is judged, some of the rest is fitted on")
    tokens: int = Field(20_000, ge=1, description="maximum number of held-out tokens per domain")


class ProbeTextRecipe(_Probe, ProbeOptions):
    """A probe on a text with a domain for each row."""

    data: str = Field(description="text with a domain per row: .jsonl, .parquet, a folder of them, or a hub data set")
    fit_data: str | None = Field(
        None, description="text for fitting the linear probes and the experts' domains (default: half of the data)"
    )
