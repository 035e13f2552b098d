"""The settings and the result of `bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from smolmoe.core.provenance import command, versions
from smolmoe.results.base import Result
from smolmoe.results.flops import FlopCounts


class BenchSettings(BaseModel):
    """How every model is measured."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4, 16), min_length=1, description="batch sizes, in prompts"
    )
    prompt_tokens: int = Field(128, ge=2, description="length of a prompt, in tokens")
    new_tokens: int = Field(16, ge=2, description="number of tokens generated per prompt")
    rounds: int = Field(3, ge=1, description="number of measured rounds per batch size")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="dtype of the weights (default: as stored)"
    )
    experts: str | None = Field(
        None, description="experts implementation: smolmoe, eager, grouped_mm, batched_mm, ... (default: smolmoe)"
    )
    train: bool = Field(True, description="FLOPs of a training step, with the backward pass")
    device: str = Field("auto", description="device: auto, cpu, cuda, cuda:N, xpu or mps")
    threads: int | None = Field(None, ge=1, description="number of CPU threads (default: torch's)")
    seed: int = Field(0, ge=0, lt=2**32, description="random seed")


@dataclass(frozen=True)
class Times:
    """Seconds: the median and the 90th percentile."""

    median: float
    p90: float


@dataclass(frozen=True)
class BatchSpeed:
    """The measurements of one batch size.

    Attributes:
        first_token: seconds to the first token: the prefill of the whole batch.
        token: seconds per further token of each prompt.
        prefill_tokens_per_second, decode_tokens_per_second: over the whole batch.
        peak_bytes: peak memory, including the model.
        sample_bytes: memory per prompt.
    """

    batch_size: int
    prompt_tokens: int
    first_token: Times
    token: Times
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_bytes: int
    sample_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Parameters: total, active per token, and both without embeddings."""

    total: int
    active: int
    total_without_embeddings: int
    active_without_embeddings: int


@dataclass(frozen=True)
class Bytes:
    """Of all weights, and of those in matrix products, which are read per decoded token."""

    total: int
    active: int


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model before it runs.

    Attributes:
        implementation, experts, top_k: of its experts; None for a dense model.
        process_bytes: resident before the model was loaded; `loaded_bytes`: added by loading it.
    """

    name: str
    class_name: str
    dtype: str
    implementation: str | None
    experts: int | None
    top_k: int | None
    parameters: Sizes
    bytes: Bytes
    load_seconds: float
    process_bytes: int
    loaded_bytes: int


@dataclass(frozen=True)
class ModelBench(ModelFacts):
    """The facts and measurements of a model."""

    flops: FlopCounts
    speed: tuple[BatchSpeed, ...]


@dataclass(frozen=True)
class Ratio:
    """Median, lowest and highest over rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BatchRatios:
    """The first model divided by the second, for one batch size: seconds, tokens per second, memory.

    `decode_for_bytes` is `decode` times the first's active bytes over the second's: 1 if both read their weights at the
    same speed. None for more than one prompt, because several prompts choose more experts.
    """

    batch_size: int
    first_token: Ratio
    token: Ratio
    prefill: Ratio
    decode: Ratio
    decode_for_bytes: Ratio | None
    peak: float


class BenchResult(Result):
    """The measurements of one model, or of two models with their ratios."""

    kind: Literal["bench"] = "bench"
    settings: BenchSettings
    machine: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=versions)
    command: str | None = Field(default_factory=command)
    models: tuple[ModelBench, ...]
    ratios: tuple[BatchRatios, ...]
