"""What a conversion says that it will do, as its plan wrote it down."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.errors import CheckpointError

KINDS = ("exact", "rounded", "deviates", "none")
PROVENANCE_FILE = "smolmoe.json"


@dataclass(frozen=True)
class Claim:
    """What is claimed of an MoE against the dense model that it was made from.

    Attributes:
        kind: "exact": the same function; "rounded": the same but for rounding weights to the files' dtype; "deviates":
            another function by design; "none": nothing.
        tolerance: largest |difference of logits| of an exact claim, relative to the largest |logit|, in fp32.
        predicted_ffn_error: per layer ||moe_ffn(x) - dense_ffn(x)|| / ||dense_ffn(x)||, None where not predicted.
        band: lowest and highest measured / predicted of a claim that deviates.
        reason: why it deviates.
        granularity: G; the experts g*G ... g*G+G-1 are one group, chosen together.
    """

    kind: str = "none"
    tolerance: float = 1e-5
    predicted_ffn_error: tuple[float | None, ...] = ()
    band: tuple[float, float] = (0.75, 1.33)
    reason: str = ""
    granularity: int = 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Claim:
        """Raises CheckpointError for values that are no claim."""
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
                granularity=int(values.get("granularity") or 1),
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"not a claim ({error}).", field="claim", value=dict(values)) from error
        if claim.kind not in KINDS:
            raise CheckpointError(f"not a kind of claim; there are {', '.join(KINDS)}.", field="kind", value=claim.kind)
        return claim


def read_claim(folder: Path) -> Claim:
    """The claim in a folder's smolmoe.json; kind "none" where there is no such file or no claim in it.

    Raises:
        CheckpointError: the file is no JSON, or its claim is none.
    """
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        return Claim()
    try:
        values = json.loads(path.read_text(encoding="utf-8")).get("claim") or {}
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"not readable: {error}.", field=PROVENANCE_FILE, value=str(path)) from error
    return Claim.from_json(values)


def as_json(value: Any) -> Any:
    """Plain data of nested results; numbers that JSON has no sign for become text."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
