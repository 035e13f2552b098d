"""The checks that a claim implies, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping

from smolmoe.core.claim import Claim
from smolmoe.results.verification import Check, Verification

# Equivalent computations in fp32 (another batch shape, a KV cache) differ by rounding, far below this share of a logit.
SELF_TOLERANCE = 1e-4
# Where padding changes the dense model itself (LFM2's convolutions with a bias), another function may change by more.
DENSE_FACTOR = 2
# A control this close to the tolerance would mean that the measurement does not distinguish experts.
CONTROL_FACTOR = 100
# "rounded" predicts the rounding error from its statistics; twice that is not chance.
ROUNDED_FACTOR = 2
# Two computations in 16 bits differ from each other by about as much as each does from fp32.
HALF_FACTOR = 3
# Below this an FFN error is fp32 rounding, whatever was predicted.
FFN_NOISE = 1e-5


def judge(
    found: Verification, *, finite: bool, not_finite: Mapping[str, str], same_tokens: bool | None
) -> tuple[Check, ...]:
    """The checks that every MoE must pass, and those of its claim.

    Args:
        found: the measurements, without checks.
        finite: every logit of the MoE is finite.
        not_finite: tensors with NaN or infinity, and their extent.
        same_tokens: both tokenizers agree; None if the dense model has none.
    """
    claim, half = found.claim, found.half
    checks = [_weights(not_finite), *_sanity(found, finite, same_tokens)]
    if claim.kind == "exact":
        checks += _exact(found)
    # With incomplete groups the affected tokens get another function, as such a claim states.
    if claim.kind in ("exact", "rounded") and half is not None and not half.incomplete_groups:
        meaning = f"Computed in {half.dtype}, the two differ on average by no more than rounding explains."
        checks.append(_at_most(half.dtype, half.mean_abs, HALF_FACTOR * half.noise_mean_abs, meaning))
    if claim.kind in ("rounded", "deviates"):
        checks += _ffn(claim, found.ffn_error)
    return tuple(checks)


def _weights(not_finite: Mapping[str, str]) -> Check:
    named = "".join(f" {name}: {said}." for name, said in list(not_finite.items())[:3])
    more = f" And {len(not_finite) - 3} other tensors." if len(not_finite) > 3 else ""
    meaning = f"Every weight of the MoE is finite.{named}{more}"
    return Check("weights", not not_finite, float(len(not_finite)), 0.0, meaning)


def _sanity(found: Verification, finite: bool, same_tokens: bool | None) -> list[Check]:
    limit = SELF_TOLERANCE * found.logits.max_logit
    checks = [Check("finite", finite, float(not finite), 0.0, "Every logit of the MoE is finite.")]
    if (padding := found.padding) is not None:
        worst = max(padding.left_self, padding.right_self)
        unless = limit + DENSE_FACTOR * max(padding.left_dense, padding.right_dense)
        meaning = (
            "Padding a batch does not change the MoE's logits at real tokens, unless it changes the dense model's."
        )
        checks.append(_at_most("padding (itself)", worst, unless, meaning))
    if (decoding := found.decoding) is not None:
        meaning = "The KV cache does not change the MoE's logits."
        checks.append(_at_most("cache (itself)", decoding.max_abs_self, limit, meaning))
    if same_tokens is not None:
        meaning = "The MoE's tokenizer produces the same tokens as the dense model's."
        checks.append(Check("tokenizer", same_tokens, float(not same_tokens), 0.0, meaning))
    return checks


def _exact(found: Verification) -> list[Check]:
    limit = found.claim.tolerance * found.logits.max_logit + rounding_allowed(found.rounding, found.logits.max_logit)
    checks = [_at_most("logits", found.logits.max_abs, limit, "The MoE's logits equal the dense model's.")]
    if (padding := found.padding) is not None:
        worst = max(padding.left, padding.right)
        unless = limit + max(padding.left_dense, padding.right_dense)
        meaning = "The same in padded batches, at real tokens, up to what padding changes in the dense model."
        checks.append(_at_most("padding", worst, unless, meaning))
    if (decoding := found.decoding) is not None:
        checks.append(_at_most("cache", decoding.max_abs, limit, "The same when decoding with the KV cache."))
        # If the dense model prefers one token to another by less than twice the tolerance, either token is correct.
        close_call = decoding.margin is not None and decoding.margin <= 2 * limit
        meaning = "Greedy decoding gives the dense model's tokens (measured: its logit gap at the first difference)."
        equal = decoding.equal or close_call
        checks.append(Check("greedy tokens", equal, decoding.margin or 0.0, 2 * limit, meaning))
    far, measured = CONTROL_FACTOR * limit, found.control.max_abs
    meaning = "With random experts the logits are far off, so the measurement is sensitive to the experts."
    return [*checks, Check("control", measured >= far, measured, far, meaning)]


def rounding_allowed(rounding: float, max_logit: float) -> float:
    """What another order of summation changes in the reference; 0 if padding changes it by more than rounding."""
    return rounding if rounding <= SELF_TOLERANCE * max_logit else 0.0


def _ffn(claim: Claim, measured: tuple[float | None, ...]) -> list[Check]:
    if not claim.predicted_ffn_error:  # planned without the weights
        return []
    if len(claim.predicted_ffn_error) != len(measured):
        meaning = (
            f"The claim predicts {len(claim.predicted_ffn_error)} FFN errors, but the model has {len(measured)} layers."
        )
        counts = float(len(claim.predicted_ffn_error)), float(len(measured))
        return [Check("FFN errors", False, *counts, meaning)]
    checks = []
    for layer, (error, predicted) in enumerate(zip(measured, claim.predicted_ffn_error, strict=True)):
        if predicted is None:
            continue
        name, value = f"FFN error, layer {layer}", float("inf") if error is None else error
        if claim.kind == "rounded" or predicted <= FFN_NOISE:
            limit = max(ROUNDED_FACTOR * predicted, FFN_NOISE)
            checks.append(
                _at_most(name, value, limit, f"At most {ROUNDED_FACTOR} times the predicted {predicted:.2g}.")
            )
        else:
            low, high = (factor * predicted for factor in claim.band)
            meaning = f"Within {claim.band[0]:g} to {claim.band[1]:g} times the predicted {predicted:.3g}."
            limit = low if value < predicted else high
            checks.append(Check(name, low <= value <= high, value, limit, meaning))
    return checks


def _at_most(name: str, measured: float, limit: float, meaning: str) -> Check:
    return Check(name, measured <= limit, measured, limit, meaning)
