"""The result of a verification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, computed_field

from smolmoe.core.claim import Claim
from smolmoe.errors import VerificationError
from smolmoe.results.base import Result

VerifyMode = Literal["full", "quick"]
QUICK_LEAVES_OUT = "padded batches, decoding with the KV cache and computation in 16 bits"


@dataclass(frozen=True)
class Check:
    """A condition that must hold.

    Attributes:
        measured, limit: the number, and the bound nearest to it.
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
        top1: share of tokens whose most likely next token is the same in both.
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
        left_dense, right_dense: of the padded dense model from itself without padding: rounding, to which linear
            attention (Qwen3.5) is sensitive.
    """

    left: float
    right: float
    left_self: float
    right_self: float
    left_dense: float = 0.0
    right_dense: float = 0.0


@dataclass(frozen=True)
class Decoding:
    """Greedy decoding with the KV cache.

    Attributes:
        prompts, new_tokens: how many prompts, and how many tokens after each.
        equal: every token is the dense model's.
        first_difference: the earliest new token that differs, counted from 0, or None.
        margin: how far the dense model preferred its token there, in logits (the largest over prompts).
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
    """The same MoE with random experts: the baseline without the dense model's FFN."""

    loss: float
    max_abs: float


@dataclass(frozen=True)
class HalfPrecision:
    """Both models computed in the MoE's own 16-bit dtype.

    Attributes:
        max_abs, mean_abs: |difference of logits| between the two.
        noise_max_abs, noise_mean_abs: the same between the dense model in this dtype and in fp32.
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
class ExpertsReached:
    """Over all MoE layers: the routed experts that at least one token of the measurement reached, and their number."""

    reached: int
    total: int


@dataclass(frozen=True)
class PartSeconds:
    """Duration of a part, and what it took of the processor, all threads together: other programs change it less."""

    wall: float
    cpu: float


class Verification(Result):
    """The measurements of a conversion, and whether its claim holds.

    Attributes:
        dense, moe: the folders.
        mode: "full", or "quick": on fewer sequences, without `padding`, `decoding` and `half`.
        claim: what the conversion claims.
        reference: what the MoE was compared with: the dense model, or its weights rounded to the MoE's dtype.
        dtype: of the stored MoE.
        text: source of the tokens.
        lengths: tokens of each sequence.
        rounding: largest |difference of logits| that padding makes to the dense model itself.
        padding, decoding: None in a quick verification.
        control: on the shortest and the longest sequence, as are `padding` and `half`.
        ffn_error: per layer ||moe_ffn(x) - dense_ffn(x)|| / ||dense_ffn(x)|| in fp32, None for a layer without an FFN.
        experts: how many of them were measured.
        incomplete_groups: as in HalfPrecision, in fp32.
        half: the measurements in 16 bits, if the MoE is stored so and the verification is full.
        checks: the conditions; the verification passed if all hold.
        seconds: duration.
        seconds_by_part: duration of each part: of opening the files ("open"), of each run of each model.
    """

    kind: Literal["verify"] = "verify"
    dense: str
    moe: str
    mode: VerifyMode = "full"
    claim: Claim
    reference: str
    dtype: str
    text: str
    lengths: tuple[int, ...]
    logits: Difference
    rounding: float = 0.0
    padding: Padding | None
    decoding: Decoding | None
    control: Control
    ffn_error: tuple[float | None, ...]
    experts: ExpertsReached | None = None
    incomplete_groups: float | None
    half: HalfPrecision | None
    checks: tuple[Check, ...]
    seconds: float
    seconds_by_part: dict[str, PartSeconds] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
