"""The result of `compare`, written to `compare.json`: models side by side on the same held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import computed_field

from smolmoe.core.statistics import FEWEST_DOCUMENTS, Interval, side
from smolmoe.results.base import Result

FILE = "compare.json"
TABLE = "table.md"
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Span:
    """The ends of a 95% interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A quantity of a model, the mean over its seeds.

    Attributes:
        documents: by a bootstrap over documents.
        seeds: by Student's t over the seeds; None for a single seed.
    """

    value: float
    documents: Span
    seeds: Span | None = None


@dataclass(frozen=True)
class Difference:
    """The difference of a quantity between two models on the same documents.

    Attributes:
        documents: by a bootstrap over documents, resampled together for both models.
        p: two-sided, of a test that swaps the two models' losses in random documents.
        seeds: by Student's t over the seeds' differences; None if both models have one.
        over: number of documents; None if not on record.
    """

    value: float
    documents: Span
    p: float
    seeds: Span | None = None
    over: int | None = None

    @property
    def gap(self) -> Interval:
        """The difference with its interval over documents."""
        return Interval(self.value, self.documents.low, self.documents.high)

    @property
    def count(self) -> int:
        """The number of documents; if not on record, the minimum for a finding."""
        return FEWEST_DOCUMENTS if self.over is None else self.over

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_decided(self) -> bool:
        """Whether it is a finding by every interval and by the test."""
        spans = [self.documents, *([] if self.seeds is None else [self.seeds])]
        sides = {side(Interval(self.value, span.low, span.high), self.count) for span in spans}
        return sides in ({"lower"}, {"higher"}) and self.p < SIGNIFICANT

    def turned(self) -> Difference:
        """The second minus the first."""
        seeds = None if self.seeds is None else Span(-self.seeds.high, -self.seeds.low)
        return Difference(-self.value, Span(-self.documents.high, -self.documents.low), self.p, seeds, self.over)


@dataclass(frozen=True)
class Pair:
    """Two models; below 0, the first is better.

    Attributes:
        loss: in nats per unit of the comparison.
        by_domain: the same per domain; empty if the text has no domains.
    """

    first: str
    second: str
    loss: Difference
    by_domain: dict[str, Difference]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def better(self) -> str | None:
        """The one with the lower loss; None if undecided."""
        return (self.first if self.loss.value < 0 else self.second) if self.loss.is_decided else None


@dataclass(frozen=True)
class Agreement:
    """The agreement of a model with the base, token by token.

    Attributes:
        top1: share of tokens for which both have the same most likely next token.
        kl: KL(base || model) in nats per token.
    """

    top1: Estimate
    kl: Estimate


@dataclass(frozen=True)
class Training:
    """The recorded training of a checkpoint.

    Attributes:
        tokens, flops: of the training since the base, or since the first recorded ancestor if the base is not among
            the ancestors (`since` is None).
        since: name of the base, if it is an ancestor.
        stages: folder names of the recorded ancestors in order, this checkpoint last.
    """

    tokens: int
    flops: float
    since: str | None
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Leak:
    """Whether a checkpoint was trained on the text that it is compared on.

    Attributes:
        documents: held-out documents in the training text of the checkpoint or an ancestor.
        tokens: in them.
        unchecked: recorded training data that could not be read here; None if nothing is on record.
    """

    documents: int
    tokens: int
    unchecked: tuple[str, ...] | None


@dataclass(frozen=True)
class CheckpointResult:
    """One seed of a model.

    Attributes:
        seed: of its training, if it is on record.
        loss, by_domain: in nats per unit of the comparison.
        training, leak: None if nothing is on record.
    """

    path: str
    sha256: str
    seed: int | None
    loss: float
    by_domain: dict[str, float]
    training: Training | None
    leak: Leak


@dataclass(frozen=True)
class Speed:
    """Speed and memory of the first checkpoint on this machine.

    Attributes:
        latency: seconds from a prompt to its first token.
        prefill, decode: tokens per second.
        memory: peak bytes while one prompt is answered, including the model.
        settings: of the measurement.
    """

    latency: float
    prefill: float
    decode: float
    memory: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """A metric of a task of lm-evaluation-harness.

    Attributes:
        value: the mean over seeds.
        stderr: of the first seed, over the task's rows, from the harness.
        values: of each seed.
    """

    value: float
    stderr: float | None
    higher_is_better: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class ModelResult:
    """A model with all measurements of its checkpoints.

    Attributes:
        kind: "dense" or "moe"; `experts`, `top_k` of an MoE's layers.
        tokenizer: its hash, the same for tokenizers that split text in the same way.
        parameters, active: total, and active per token.
        disk: bytes of config, tokenizer and weights.
        flops: of the forward pass, per token.
        loss, by_domain: in nats per unit of the comparison.
        perplexity, perplexity_by_domain: exp of these.
        bits_per_byte, bits_per_byte_by_domain: the same losses per byte of UTF-8.
        agreement: with the base; None for the base, and if the tokenizers differ.
        speed: None if it was not measured.
        tasks: task -> metric -> score.
    """

    name: str
    kind: str
    class_name: str
    experts: int | None
    top_k: int | None
    tokenizer: str
    parameters: int
    active: int
    disk: int
    flops: float
    loss: Estimate
    by_domain: dict[str, Estimate]
    perplexity: Estimate
    perplexity_by_domain: dict[str, Estimate]
    bits_per_byte: Estimate
    bits_per_byte_by_domain: dict[str, Estimate]
    agreement: Agreement | None
    speed: Speed | None
    tasks: dict[str, dict[str, Score]]
    checkpoints: tuple[CheckpointResult, ...]


@dataclass(frozen=True)
class TextFacts:
    """The text that the models are compared on.

    Attributes:
        documents, tokens, bytes: per domain ("text" if it has none); tokens are the base's.
        sha256: of the scored documents.
    """

    source: str
    by: str | None
    documents: dict[str, int]
    tokens: dict[str, int]
    bytes: dict[str, int]
    length: int
    sha256: str


class Comparison(Result):
    """Models side by side on the same held-out text.

    Attributes:
        verdict: sentences; the first states which model has the lower loss.
        warnings: caveats.
        unit: of the losses, nats per "token", or per "byte" if the tokenizers differ.
        models: in the requested order; the first is the base.
        pairs: all pairs, the later model first.
        winners: measure -> the models that no other beats.
        seeds: number of checkpoints of the models with several, else 1.
    """

    kind: Literal["compare"] = "compare"
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    unit: str
    text: TextFacts
    models: tuple[ModelResult, ...]
    pairs: tuple[Pair, ...]
    winners: dict[str, tuple[str, ...]]
    seeds: int
    device: str
    versions: dict[str, str]
    command: str | None

    @computed_field(alias="base")  # type: ignore[prop-decorator]
    @property
    def base_name(self) -> str:
        """Its name, as in the file."""
        return self.base.name

    @property
    def base(self) -> ModelResult:
        return self.models[0]

    @property
    def hashes(self) -> set[str]:
        """Hashes of all compared checkpoints."""
        return {checkpoint.sha256 for model in self.models for checkpoint in model.checkpoints}
