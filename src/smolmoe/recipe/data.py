"""Text to train on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from smolmoe.recipe.base import Recipe
from smolmoe.recipe.words import Seed

HUB = "hub:"  # before a path: a data set of the hub, or a folder in the form of one
_PART = r"[^:\[\]]+(?:\[[^\]]*\])?"  # train, or train[:100]
_HUB_PATH = re.compile(rf"(?P<path>{HUB}[^:\[\]]+):(?P<first>{_PART})(:(?P<second>{_PART}))?")
_SPLITS = ("train", "validation", "valid", "dev", "test", "all")


class SourceRecipe(Recipe):
    """One source of documents: a preset, a local file or folder, a hub dataset, or the embedded corpus."""

    preset: str | None = Field(
        None,
        description="known data set, e.g. tinystories; with a path, the data set or the form of chat logs whose "
        "columns the rows have",
    )
    path: str | None = Field(
        None,
        description="local file (.jsonl, .csv, .parquet, .md, .py, ...), folder, or hub data set: owner/name, or "
        "hub:owner/name[:config][:split]",
    )
    name: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of a hub data set (default: train)")
    revision: str | None = Field(None, description="commit, branch or tag of a hub data set")
    text: str = Field("text", description="column with the text")
    domain: str | None = Field(None, description="domain of every document of this source")
    domain_column: str = Field("domain", description="column with a document's domain, if there is one")
    by_folder: bool = Field(False, description="domain of each file from the subfolder that it is in")
    chat_template: str | None = Field(
        None,
        description="folder or hub id of the model whose chat template renders conversations (default: plain text, "
        "each turn after its speaker)",
    )
    rows: int | None = Field(None, ge=1, description="maximum number of documents")
    weight: float | None = Field(None, gt=0, description="share of the training tokens, relative to the other sources")
    streaming: bool = Field(
        False, description="streaming of a hub data set: only what the run needs is read, in the order of the files"
    )
    shuffle_buffer: int = Field(
        0, ge=0, description="number of documents in the shuffle buffer of a stream; 0 keeps their order"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_the_parts_of_a_hub_path(cls, values: Any) -> Any:
        """`hub:owner/name:config:split` as path, name and split."""
        path = values.get("path") if isinstance(values, Mapping) else None
        found = _HUB_PATH.fullmatch(path) if isinstance(path, str) else None
        if found is None:
            return values
        first, second = found["first"], found["second"]
        is_split = second is None and first.partition("[")[0] in _SPLITS
        named = {"split": first} if is_split else {"name": first} | ({"split": second} if second else {})
        return {**values, **named, "path": found["path"]}

    @model_validator(mode="after")
    def _names_one_source(self) -> Self:
        if self.preset is None and self.path is None:
            raise ValueError("a source is a preset, a path, or a path with the columns of a preset")
        if self.preset == "embedded" and self.path is not None:
            raise ValueError("the embedded corpus has no path")
        return self


class DataRecipe(Recipe):
    """Documents to train on, held-out documents, and their blocks of tokens."""

    sources: tuple[SourceRecipe, ...] = Field(description="sources of the text")
    validation: tuple[SourceRecipe, ...] = Field(
        (), description="separate held-out text; otherwise a share is held out"
    )
    held_out: float = Field(0.02, gt=0, lt=1, description="share of the documents to hold out, by a hash of their text")
    length: int = Field(256, ge=2, description="tokens per block")
    isolate: bool = Field(False, description="no attention across the documents in a block")
    seed: Seed = Field(0, description="random seed of the documents' order")
    skip: int = Field(0, ge=0, description="number of blocks to skip: those that an earlier training has read")
    cache: Path | None = Field(None, description="folder for tokenised text (default: the user's cache folder)")

    @model_validator(mode="after")
    def _weights_are_all_or_none(self) -> Self:
        if not self.sources:
            raise ValueError("there is nothing to train on: name at least one source")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise ValueError("give every source a weight, or none")
        return self
