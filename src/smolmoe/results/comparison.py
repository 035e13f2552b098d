"""What `compare` found: models side by side on the same held-out text, as it is written to `compare.json`."""

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
    """A figure of a model, the mean over its seeds.

    Attributes:
        documents: by a bootstrap over documents: would other text have given another figure?
        seeds: by Student's t over the seeds: would another training have? None of a single one.
    """

    value: float
    documents: Span
    seeds: Span | None = None


@dataclass(frozen=True)
class Difference:
    """A figure of one model less that of another, on the same documents.

    Attributes:
        documents: by a bootstrap over documents, resampled together for both models.
        p: of a test that swaps the two models' losses of documents at random, two-sided.
        seeds: by Student's t over the seeds' differences; None where both models have one.
        over: documents; None where it is not on record.
    """

    value: float
    documents: Span
    p: float
    seeds: Span | None = None
    over: int | None = None

    @property
    def gap(self) -> Interval:
        """With its interval over documents."""
        return Interval(self.value, self.documents.low, self.documents.high)

    @property
    def count(self) -> int:
        """Of documents, as many as a finding takes where it is not on record."""
        return FEWEST_DOCUMENTS if self.over is None else self.over

    @computed_field  # type: ignore[prop-decorator]
    @property
    def is_decided(self) -> bool:
        """Whether it is a finding by every interval and by the test."""
        spans = [self.documents, *([] if self.seeds is None else [self.seeds])]
        sides = {side(Interval(self.value, span.low, span.high), self.count) for span in spans}
        return sides in ({"lower"}, {"higher"}) and self.p < SIGNIFICANT

    def turned(self) -> Difference:
        """The second's figure less the first's."""
        seeds = None if self.seeds is None else Span(-self.seeds.high, -self.seeds.low)
        return Difference(-self.value, Span(-self.documents.high, -self.documents.low), self.p, seeds, self.over)


@dataclass(frozen=True)
class Pair:
    """Two models; below 0 the first is better.

    Attributes:
        loss: in nats, per what the comparison's `unit` says.
        by_domain: the same of each domain; empty where the text has no domains.
    """

    first: str
    second: str
    loss: Difference
    by_domain: dict[str, Difference]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def better(self) -> str | None:
        """The one whose loss is lower; None where that is not decided."""
        return (self.first if self.loss.value < 0 else self.second) if self.loss.is_decided else None


@dataclass(frozen=True)
class Agreement:
    """How far a model says what the base says, token by token.

    Attributes:
        top1: share of tokens for which both find the same token likeliest.
        kl: KL(base || model) in nats a token.
    """

    top1: Estimate
    kl: Estimate


@dataclass(frozen=True)
class Training:
    """What the folders record of how a checkpoint came about.

    Attributes:
        tokens, flops: trained on since the base, or, where the base is not among the ancestors (`since` is None),
            since the first one on record.
        since: the name of the base, where it is an ancestor.
        stages: folder names of the ancestors on record, the first one first, this checkpoint last.
    """

    tokens: int
    flops: float
    since: str | None
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Leak:
    """Whether a checkpoint was trained on the text that it is judged by.

    Attributes:
        documents: of the held-out ones, those among the text that it or an ancestor was trained on.
        tokens: in them.
        unchecked: training data on record that could not be read here; None where nothing is on record.
    """

    documents: int
    tokens: int
    unchecked: tuple[str, ...] | None


@dataclass(frozen=True)
class CheckpointResult:
    """One path of a model: a seed.

    Attributes:
        seed: of its training, where it is on record.
        loss, by_domain: in nats, per what the comparison's `unit` says.
        training, leak: None where nothing is on record.
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
    """How fast the first checkpoint runs on this machine, and in how much memory.

    Attributes:
        latency: seconds from a prompt to its first token.
        prefill, decode: tokens a second, of reading a prompt and of writing after it.
        memory: bytes of the model, and of what it takes at most to answer one prompt.
        settings: what was run.
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
        stderr: of the first seed, over the task's rows, as the harness gives it.
        values: of each seed.
    """

    value: float
    stderr: float | None
    higher_is_better: bool
    values: tuple[float, ...]


@dataclass(frozen=True)
class ModelResult:
    """A model: all that was measured of its checkpoints.

    Attributes:
        kind: "dense" or "moe"; `experts`, `top_k` of an MoE's layers.
        tokenizer: its hash, the same for tokenizers that cut text alike.
        parameters, active: all, and those that one token uses.
        disk: bytes of config, tokenizer and weights.
        flops: of the forward pass, per token.
        loss, by_domain: in nats, per what the comparison's `unit` says.
        perplexity, perplexity_by_domain: exp of these.
        bits_per_byte, bits_per_byte_by_domain: the same losses per byte of UTF-8.
        agreement: with the base; None of the base, and where the tokenizer is another one.
        speed: None where it was not measured.
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
    """The text that the models are judged by.

    Attributes:
        documents, tokens, bytes: of each domain ("text" where it has none); tokens are the base's.
        sha256: of the documents as they were read.
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
        verdict: who wins at what, in sentences; the first says it of the loss.
        warnings: what speaks against the figures.
        unit: what losses are per: "token", or "byte" where the tokenizers differ.
        models: in the order asked; the first is the base.
        pairs: every two of them, the later one first.
        winners: measure -> the models that no other beats.
        seeds: checkpoints of the models that have several, 1 where none has.
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
        """As the file has it."""
        return self.base.name

    @property
    def base(self) -> ModelResult:
        return self.models[0]

    @property
    def hashes(self) -> set[str]:
        """Of all checkpoints that were compared."""
        return {checkpoint.sha256 for model in self.models for checkpoint in model.checkpoints}
