"""Known data sets, and where rows that were downloaded came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from smolmoe.results.base import Result


@dataclass(frozen=True)
class KnownDataSet:
    """A preset that can be downloaded.

    Attributes:
        free: whether its licence allows every use.
        size: about how many rows the split has.
    """

    preset: str
    path: str
    name: str | None
    split: str
    licence: str
    free: bool
    size: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """A file of rows, in the folder of the rows."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Fetched(Result):
    """Where rows came from, as provenance.json says.

    Attributes:
        path, configuration, split: of the data set on the hub.
        asked_revision, revision: as it was asked for, and the commit that this was.
        data_set_hash: of the data set's description.
        whole: the data set has no further rows.
        domains, left_out: rows of each domain; rows that were not taken, by reason.
        sha256: of the shards' hashes, in order.
    """

    kind: Literal["fetch"] = "fetch"
    preset: str
    path: str
    configuration: str | None = Field(alias="name")
    split: str
    asked_revision: str | None
    revision: str | None
    data_set_hash: str
    licence: str
    rows: int
    whole: bool
    domains: dict[str, int]
    columns: tuple[str, ...]
    left_out: dict[str, int]
    sha256: str
    shards: tuple[Shard, ...]
