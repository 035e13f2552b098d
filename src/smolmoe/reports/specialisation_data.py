"""A probe for its figures, with numbers as arrays: L layers, E experts, D domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.statistics import too_few
from smolmoe.errors import RequestError
from smolmoe.results.probe import Baseline, ProbeResult, read_result


@dataclass(frozen=True)
class Probed:
    """A probe of one model."""

    result: ProbeResult

    @classmethod
    def read(cls, path: Path) -> Probed:
        """Read `probe.json`, or the one in a folder.

        Raises:
            DataError: it is missing, or something else.
        """
        return cls(read_result(path))

    @property
    def domains(self) -> list[str]:
        return self.result.domains

    @property
    def experts(self) -> int:
        """E."""
        return self.result.model.experts

    @property
    def top_k(self) -> int:
        """K."""
        return self.result.model.top_k

    @property
    def layers(self) -> list[int]:
        """Indices of the MoE layers, in the model."""
        return self.result.model.layers

    @property
    def layer_labels(self) -> list[str]:
        return [str(layer) for layer in self.layers]

    @property
    def names(self) -> list[str | None]:
        """A name or None for each expert."""
        return self.result.model.names or [None] * self.experts

    @property
    def labels(self) -> list[str]:
        """Each expert as `3 code`, or `3` without a name."""
        return [str(index) if name is None else f"{index} {name}" for index, name in enumerate(self.names)]

    @property
    def matrix(self) -> np.ndarray:
        """[L, D, E]: shares of each domain's choices."""
        return array(self.result.matrix)

    @property
    def chance(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Low and high end of the shares by chance, each [L, D, E]; None for a probe of an earlier version."""
        found = self.result.matrix_chance
        return None if found is None else (array(found.low), array(found.high))

    @property
    def beyond(self) -> np.ndarray:
        """[L, D, E]: whether a share is beyond its range by chance; of few documents, none is."""
        if self.chance is None or too_few(self.result.documents):
            return np.zeros(self.matrix.shape, dtype=bool)
        low, high = self.chance
        return np.asarray((self.matrix < low) | (self.matrix > high))

    @property
    def clearest(self) -> int:
        """Place in `layers` of the layer with the highest domain separation."""
        separation = self.per_layer("separation")
        return 0 if np.isnan(separation).all() else int(np.nanargmax(separation))

    def per_layer(self, key: str) -> np.ndarray:
        """[L]: one number of each layer."""
        return array([getattr(row, key) for row in self.result.layers])

    def baseline(self, key: str, part: str) -> np.ndarray:
        """[L]: `mean` or `p95` of a number's permutation baseline."""
        baselines: list[Baseline] = [getattr(row, f"{key}_baseline") for row in self.result.layers]
        return array([getattr(baseline, part) for baseline in baselines])

    def layer_titles(self) -> list[str]:
        return [f"layer {layer}" for layer in self.layers]


def array(values: Any) -> np.ndarray:
    """Numbers as float64, None as NaN."""
    return np.array(values, dtype=float)


_SAME: dict[str, Callable[[Probed], Any]] = {
    "domains": lambda probed: probed.domains,
    "layers": lambda probed: probed.layers,
    "experts": lambda probed: probed.experts,
    "documents": lambda probed: probed.result.documents,
    "tokens": lambda probed: probed.result.tokens,
}


def why_not_comparable(before: Probed, after: Probed) -> str | None:
    """The field that prevents the comparison of two probes because it differs; None if they are comparable."""
    return next((field for field, of in _SAME.items() if of(before) != of(after)), None)


def check_comparable(before: Probed, after: Probed) -> None:
    """Check that two probes can be compared.

    Raises:
        RequestError: domains, layers, numbers of experts or text differ.
    """
    field = why_not_comparable(before, after)
    if field is not None:
        raise RequestError(
            f"has other {field} than the probe it is compared with: {_SAME[field](after)}.",
            field="before",
            value=_SAME[field](before),
            fix="Probe both models on the same data.",
        )
