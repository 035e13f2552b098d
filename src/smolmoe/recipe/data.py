"""What text to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed


class SourceRecipe(Recipe):
    """One source of documents: a preset, a local file or folder, a hub dataset, or the embedded corpus."""

    preset: str | None = Field(
        None, description="a known data set, e.g. tinystories; with a path, whose columns its rows have"
    )
    path: str | None = Field(None, description="local file (.jsonl, .csv, .parquet, ...), folder, or hub data set")
    name: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of a hub data set (default: train)")
    revision: str | None = Field(None, description="of a hub data set")
    text: str = Field("text", description="column that holds the text")
    domain: str | None = Field(None, description="domain of every document of this source")
    domain_column: str = Field("domain", description="column that holds a document's domain, where there is one")
    rows: int | None = Field(None, ge=1, description="documents to take at most")
    weight: float | None = Field(None, gt=0, description="share of the training tokens, relative to the other sources")
    streaming: bool = Field(False, description="hub: read only as much as the run needs, in the order of the files")
    shuffle_buffer: int = Field(0, ge=0, description="streaming: documents held to be shuffled, 0 to keep their order")

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if self.preset is None and self.path is None:
            raise ValueError("a source is a preset, a path, or a path whose rows are a preset's")
        if self.preset == "embedded" and self.path is not None:
            raise ValueError("the embedded corpus has no path")
        return self


class DataRecipe(Recipe):
    """Documents to train on, documents held out, and how they become blocks of tokens."""

    sources: tuple[SourceRecipe, ...] = Field(description="where the text comes from")
    validation: tuple[SourceRecipe, ...] = Field((), description="held-out text of its own; else a share is held out")
    held_out: float = Field(0.02, gt=0, lt=1, description="share of the documents to hold out, by a hash of their text")
    length: int = Field(256, ge=2, description="tokens a block")
    isolate: bool = Field(False, description="no attention across the documents in a block")
    seed: Seed = Field(0, description="of the documents' order")
    skip: int = Field(0, ge=0, description="blocks of that order to pass over: what an earlier training has seen")
    cache: Path | None = Field(None, description="folder for tokenised text (default: the user's cache folder)")

    @model_validator(mode="after")
    def _weights_are_all_or_none(self) -> Self:
        if not self.sources:
            raise ValueError("there is nothing to train on: name at least one source")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give every source a weight, or none")
        return self
