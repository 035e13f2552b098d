"""The claim of a conversion: written by the plan, read by the verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from smolmoe.core.provenance import read_provenance
from smolmoe.errors import CheckpointError

KINDS = ("exact", "rounded", "deviates", "none")


@dataclass(frozen=True)
class Claim:
    """What is claimed of an MoE, compared with the dense model that it was made from.

    Attributes:
        kind: "exact": the dense model's function, up to the order in which numbers are added; "rounded": the same
            except for one rounding of scaled weights to the files' dtype; "deviates": another function by design, by a
            predicted amount; "none": another function, without a prediction (merges).
        reason: why, in one or two sentences.
        dtypes: what to expect when computing in each dtype.
        granularity: G; the experts g*G ... g*G+G-1 are one group, chosen together.
        tolerance: largest |difference of logits| of an exact claim, relative to the largest |logit|, in fp32.
        predicted_ffn_error: per layer ||moe_ffn(x) - dense_ffn(x)|| / ||dense_ffn(x)|| on the dense model's own FFN
            inputs, None for a layer that stays dense; empty if nothing is predicted.
        band: lowest and highest measured / predicted of a claim that deviates.
    """

    kind: str = "none"
    reason: str = ""
    dtypes: dict[str, str] = field(default_factory=dict)
    granularity: int = 1
    tolerance: float = 1e-5
    predicted_ffn_error: tuple[float | None, ...] = ()
    band: tuple[float, float] = (0.75, 1.33)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Claim:
        """Raises CheckpointError for values that are not a claim."""
        try:
            low, high = values.get("band") or cls.band
            claim = cls(
                kind=str(values.get("kind", cls.kind)),
                tolerance=float(values.get("tolerance") or cls.tolerance),
                predicted_ffn_error=tuple(
                    None if error is None else float(error) for error in values.get("predicted_ffn_error") or ()
                ),
                band=(float(low), float(high)),
                reason=str(values.get("reason") or ""),
                dtypes=dict(values.get("dtypes") or {}),
                granularity=int(values.get("granularity") or 1),
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"is not a claim ({error}).", field="claim", value=dict(values)) from error
        if claim.kind not in KINDS:
            raise CheckpointError(f"is not a kind of claim; known: {', '.join(KINDS)}.", field="kind", value=claim.kind)
        return claim


def read_claim(folder: Path) -> Claim:
    """The claim in a folder's smolmoe.json; kind "none" if there is no such file or no claim in it.

    Raises:
        CheckpointError: the file is not JSON or has another schema, or its claim is invalid.
    """
    return Claim.from_json(read_provenance(folder).get("claim") or {})
