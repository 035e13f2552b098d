"""The `probe.json` of a probed MoE, read as plain data: shapes L layers, E experts, D domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.json_text import read_json
from smolmoe.errors import DataError, RequestError

FORMAT = 1


@dataclass(frozen=True)
class Probed:
    """What a probe measured of one model; `values` are those of the file."""

    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Probed:
        """Read `probe.json`, or the one in a folder.

        Raises:
            DataError: there is none, or it is something else.
        """
        file = path / "probe.json" if path.is_dir() else path
        try:
            values = read_json(file)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", field="probe", value=str(file)) from error
        if not isinstance(values, dict) or values.get("format") != FORMAT or "matrix" not in values:
            raise DataError(
                "not the result of a probe.", field="probe", value=str(file), fix="Write one with smolmoe probe."
            )
        return cls(values)

    @property
    def domains(self) -> list[str]:
        return list(self.values["domains"])

    @property
    def experts(self) -> int:
        """E."""
        return int(self.values["model"]["experts"])

    @property
    def top_k(self) -> int:
        """K."""
        return int(self.values["model"]["top_k"])

    @property
    def layers(self) -> list[int]:
        """Indices of the MoE layers, in the model."""
        return list(self.values["model"]["layers"])

    @property
    def names(self) -> list[str | None]:
        """A name or None for each expert."""
        return list(self.values["model"].get("names") or [None] * self.experts)

    @property
    def labels(self) -> list[str]:
        """Each expert as `3 code`, or `3` where it has no name."""
        return [str(index) if name is None else f"{index} {name}" for index, name in enumerate(self.names)]

    @property
    def matrix(self) -> np.ndarray:
        """[L, D, E]: shares of each domain's choices."""
        return array(self.values["matrix"])

    @property
    def clearest(self) -> int:
        """Place in `layers` of the layer with the highest domain separation."""
        separation = self.per_layer("separation")
        return 0 if np.isnan(separation).all() else int(np.nanargmax(separation))

    def per_layer(self, key: str) -> np.ndarray:
        """[L]: one number of each layer, NaN where there is none."""
        return array([row.get(key) for row in self.values["layers"]])

    def baseline(self, key: str, part: str) -> np.ndarray:
        """[L]: `mean` or `p95` of a number's permutation baseline."""
        return array([(row.get(f"{key}_baseline") or {}).get(part) for row in self.values["layers"]])

    def accuracy(self, key: str) -> np.ndarray | None:
        """A table of the held-out routing accuracy, None where it was not measured."""
        found = (self.values.get("accuracy") or {}).get(key)
        return None if found is None else array(found)

    def layer_titles(self) -> list[str]:
        return [f"layer {layer}" for layer in self.layers]


def array(values: Any) -> np.ndarray:
    """Numbers as float64, None as NaN."""
    return np.array(values, dtype=float)


def why_not_comparable(before: Probed, after: Probed) -> str | None:
    """What keeps two probes from being laid side by side: the field in which they differ; None where nothing does."""
    fields: dict[str, Callable[[Probed], Any]] = {
        "domains": lambda probed: probed.domains,
        "layers": lambda probed: probed.layers,
        "experts": lambda probed: probed.experts,
        "documents": lambda probed: probed.values.get("documents"),
        "tokens": lambda probed: probed.values.get("tokens"),
    }
    return next((field for field, of in fields.items() if of(before) != of(after)), None)


def check_comparable(before: Probed, after: Probed) -> None:
    """See that two probes can be laid side by side.

    Raises:
        RequestError: they have other domains, layers or numbers of experts, or read other text.
    """
    field = why_not_comparable(before, after)
    if field is not None:
        there, here = (probed.values.get(field) or getattr(probed, field) for probed in (before, after))
        raise RequestError(
            f"has other {field} than the probe it is compared with: {here}.",
            field="before",
            value=there,
            fix="Probe both models on the same data.",
        )
