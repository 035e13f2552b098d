"""What a verification found, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.claim import Claim
from smolmoe.errors import VerificationError


@dataclass(frozen=True)
class Check:
    """One thing that had to hold.

    Attributes:
        measured, limit: the number and the bound nearest to it.
        meaning: what was checked, as a sentence.
    """

    name: str
    passed: bool
    measured: float
    limit: float
    meaning: str


def failure(checks: Sequence[Check], out: Path) -> VerificationError:
    """The error that names the checks of `out` that failed."""
    return VerificationError(
        " ".join(
            f"{check.name}: measured {check.measured:.3g}, limit {check.limit:.3g}; should be: {check.meaning}"
            for check in checks
            if not check.passed
        ),
        field="out",
        value=str(out),
        fix="The files are left for inspection.",
    )


@dataclass(frozen=True)
class Difference:
    """Logits of the MoE against the dense model's, over all tokens of all sequences.

    Attributes:
        max_abs, mean_abs: |difference of logits|.
        max_logit: largest |logit| of the dense model.
        per_sequence: max_abs of each sequence.
        kl: mean KL(dense || MoE), in nats.
        top1: share of tokens for which both have the same favourite.
        dense_loss, loss, delta_loss: mean next-token loss of the dense model and of the MoE in nats, and MoE - dense.
    """

    max_abs: float
    mean_abs: float
    max_logit: float
    per_sequence: tuple[float, ...]
    kl: float
    top1: float
    dense_loss: float
    loss: float
    delta_loss: float


@dataclass(frozen=True)
class Padding:
    """Padded batches, at the real tokens: the largest |difference of logits|, by side of the padding.

    Attributes:
        left, right: from the dense model without padding.
        left_self, right_self: from the MoE itself without padding, close calls of its router left out.
    """

    left: float
    right: float
    left_self: float
    right_self: float


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding with the KV cache.

    Attributes:
        prompts, new_tokens: how many prompts, and how many tokens after each.
        equal: every token is the dense model's.
        first_difference: the earliest new token that differs, counted from 0, or None.
        margin: by how much the dense model preferred its own token there, in logits (the largest over prompts).
        max_abs: largest |difference| from the dense model's logits up to there.
        max_abs_self: largest |difference| of the MoE's cached logits from its uncached ones.
    """

    prompts: int
    new_tokens: int
    equal: bool
    first_difference: int | None
    margin: float | None
    max_abs: float
    max_abs_self: float


@dataclass(frozen=True)
class Control:
    """The same MoE with random experts: what the rest of it is worth without the dense model's FFN."""

    loss: float
    max_abs: float


@dataclass(frozen=True)
class HalfPrecision:
    """Both models computed in the MoE's own 16-bit dtype.

    Attributes:
        max_abs, mean_abs: |difference of logits| between the two.
        noise_max_abs, noise_mean_abs: of the dense model in this dtype from itself in fp32.
        flips: share of (token, MoE layer) pairs whose set of experts differs from that in fp32.
        incomplete_groups: share of (token, MoE layer) pairs whose experts are not whole groups; None without groups.
    """

    dtype: str
    max_abs: float
    mean_abs: float
    noise_max_abs: float
    noise_mean_abs: float
    flips: float
    incomplete_groups: float | None


@dataclass(frozen=True)
class Verification:
    """What was measured, and whether the claim holds.

    Attributes:
        dense, moe: the folders.
        claim: what was to be shown.
        reference: what the MoE was compared with: the dense model, or its weights rounded to the MoE's dtype.
        dtype: that the MoE is stored in.
        text: where the tokens are from.
        lengths: tokens of each sequence.
        ffn_error: per layer ||moe_ffn(x) - dense_ffn(x)|| / ||dense_ffn(x)|| in fp32, None where a layer has no FFN.
        incomplete_groups: as in HalfPrecision, in fp32.
        half: the measurements in 16 bits, where the MoE is stored so.
        checks: what had to hold; the verification passed if all of them did.
        seconds: it took.
    """

    dense: str
    moe: str
    claim: Claim
    reference: str
    dtype: str
    text: str
    lengths: tuple[int, ...]
    logits: Difference
    padding: Padding
    decoding: Decoding
    control: Control
    ffn_error: tuple[float | None, ...]
    incomplete_groups: float | None
    half: HalfPrecision | None
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return as_json({"passed": self.passed, **asdict(self)})


def as_json(value: Any) -> Any:
    """Plain data of nested results; numbers that JSON has no sign for become text."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
