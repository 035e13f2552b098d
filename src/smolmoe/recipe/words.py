"""Arguments of many public functions: type and meaning, written once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

RecipeGiven = Annotated[Any, Field(description="YAML file or name of a shipped recipe")]
Set = Annotated[Sequence[str], Field(description="change to the recipe: a dotted key, and its value as YAML")]
Resume = Annotated[str | None, Field(description="checkpoint to resume from: latest or its folder")]
ResumeTraining = Annotated[str | None, Field(description="checkpoint to resume from: latest, best or its folder")]
Continue = Annotated[bool, Field(description="continuation of an interrupted job in its folder")]
Overwrite = Annotated[bool, Field(description="replacement of the content of the output folder")]
DryRun = Annotated[bool, Field(description="estimates and checks only; nothing is run or written")]
Device = Annotated[str, Field(description="device: auto, cpu, cuda, cuda:N, xpu or mps")]
SEEDS = 2**32  # numpy takes seeds below it
Seed = Annotated[int, Field(ge=0, lt=SEEDS, description="random seed")]
Moe = Annotated[str | Path, Field(description="folder or hub id of an MoE")]
Out = Annotated[str | Path, Field(description="output folder")]
