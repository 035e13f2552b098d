"""What `bench` is asked, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from smolmoe.core.provenance import command, versions
from smolmoe.errors import RequestError
from smolmoe.results.base import Result
from smolmoe.results.flops import FlopCounts

BATCH_SIZES = (1, 4, 16)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BenchSettings:
    """What is asked of every model; `dtype` None is the stored one, `experts` None what `generate` takes.

    Attributes:
        batch_sizes: prompts answered at once.
        prompt_tokens, new_tokens: of each prompt.
        rounds: counted, after one that is not.
        threads: of the CPU; None leaves it to torch.
        train: count the FLOPs of a backward pass, too.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    prompt_tokens: int = 128
    new_tokens: int = 16
    rounds: int = 3
    dtype: str | None = None
    device: str = "cpu"
    threads: int | None = None
    experts: str | None = None
    train: bool = True
    seed: int = 0

    def check(self) -> None:
        """Raise RequestError for what no model could do."""
        least = {"rounds": (self.rounds, 1), "threads": (1 if self.threads is None else self.threads, 1)}
        least |= {"prompt_tokens": (self.prompt_tokens, 2), "new_tokens": (self.new_tokens, 2)}
        for field, (value, smallest) in least.items():
            if value < smallest:
                raise RequestError("out of range.", field=field, value=value, fix=f"Use at least {smallest}.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise RequestError("must be 1 or more each.", field="batch_sizes", value=self.batch_sizes, fix="E.g. 1,4.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise RequestError(
                "no such number type.", field="dtype", value=self.dtype, fix=f"Use one of {', '.join(DTYPES)}."
            )


@dataclass(frozen=True)
class Times:
    """Seconds: the median, and what nine of ten took at most."""

    median: float
    p90: float


@dataclass(frozen=True)
class BatchSpeed:
    """The measurements of one batch size.

    Attributes:
        first_token: seconds to the first token: the prefill of the whole batch.
        token: seconds for a further token of each prompt.
        prefill_tokens_per_second, decode_tokens_per_second: over the whole batch.
        peak_bytes: the most held at a time, the model included.
        sample_bytes: of it, what each prompt added.
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
    """Parameters: all, those that one token uses, and both without embeddings."""

    total: int
    active: int
    total_without_embeddings: int
    active_without_embeddings: int


@dataclass(frozen=True)
class Bytes:
    """Of all weights, and of those in matrix products, which a decoded token has to read."""

    total: int
    active: int


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, before it runs.

    Attributes:
        implementation, experts, top_k: of its experts; None for a dense model.
        process_bytes: resident before the model was loaded; `loaded_bytes`: what loading it added.
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
    """A model's facts and figures."""

    flops: FlopCounts
    speed: tuple[BatchSpeed, ...]


@dataclass(frozen=True)
class Ratio:
    """Median over rounds, and the lowest and highest of them."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class BatchRatios:
    """The first model over the second, one batch size: seconds, tokens per second, memory.

    `decode_for_bytes` is `decode` times the first's active bytes over the second's: 1 where both read their weights at
    the same speed. None for more than one prompt, which choose more experts.
    """

    batch_size: int
    first_token: Ratio
    token: Ratio
    prefill: Ratio
    decode: Ratio
    decode_for_bytes: Ratio | None
    peak: float


class BenchResult(Result):
    """One model's figures, or two models' and their ratios."""

    kind: Literal["bench"] = "bench"
    settings: BenchSettings
    machine: dict[str, Any]
    versions: dict[str, str] = Field(default_factory=versions)
    command: str | None = Field(default_factory=command)
    models: tuple[ModelBench, ...]
    ratios: tuple[BatchRatios, ...]
