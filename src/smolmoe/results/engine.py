"""What an engine computes of a model folder, compared with transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from smolmoe.core.provenance import command, versions
from smolmoe.results.base import Result

Verdict = Literal["equal", "differs", "does not load", "does not run"]


@dataclass(frozen=True)
class EngineDifference:
    """How far an engine is from transformers in float32.

    Attributes:
        max_abs, mean_abs: |difference| of the log-probabilities of the next tokens, in nats.
        limit: largest `max_abs` that float32 rounding explains; `beyond`: number of tokens that differ by more.
        perplexity, engine_perplexity: of the text.
        greedy_equal: greedy tokens that are equal, up to the first that differs after each prompt, of `greedy_tokens`.
        margin: by how much transformers prefers its own token at the first difference, in logits (the largest over
            prompts); None where all are equal.
    """

    max_abs: float
    mean_abs: float
    limit: float
    beyond: int
    perplexity: float
    engine_perplexity: float
    greedy_equal: int
    greedy_tokens: int
    margin: float | None


class EngineVerification(Result):
    """One engine on one model folder.

    Attributes:
        engine, engine_version, python: which ran, its version, and the Python that ran it.
        model, model_type, dtype: the folder, its class, and the dtype of its weights.
        text, lengths: where the tokens are from, and how many each sequence has.
        verdict: "equal", "differs", "does not load", or "does not run" (it fails after loading, or hangs).
        reason: why, unless it is equal.
        known: why the engine is known not to compute this model. Some shows only in a longer text, so it may stand
            next to "equal".
        difference: None where there are no numbers.
        last_lines: of the engine's output, where it failed.
        seconds: of the engine, loading included.
    """

    kind: Literal["engine-verification"] = "engine-verification"
    engine: str
    engine_version: str | None
    python: str
    model: str
    model_type: str
    dtype: str
    text: str
    lengths: tuple[int, ...]
    verdict: Verdict
    reason: str | None = None
    known: tuple[str, ...] = ()
    difference: EngineDifference | None = None
    last_lines: tuple[str, ...] = ()
    seconds: float
    versions: dict[str, str] = Field(default_factory=versions)
    command: str | None = Field(default_factory=command)

    @property
    def passed(self) -> bool:
        return self.verdict == "equal"
