"""A comparison under the names that a page gives to its models."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from smolmoe.evaluation.compare.verdict import verdict, warnings
from smolmoe.reports.names import renamed
from smolmoe.results.comparison import Comparison as Compared
from smolmoe.results.files import Comparison


def under_names(found: Comparison, names: Mapping[str, str]) -> Comparison:
    """The same comparison with its models under other names, and its sentences made of these."""
    if all(key == value for key, value in names.items()):
        return found
    values = renamed(found.values, names)
    try:
        compared = TypeAdapter(Compared).validate_python(values)
    except ValidationError:  # of an earlier version: it stays as it was written
        return found
    said = verdict(compared.models, compared.pairs, compared.unit)
    warned = warnings(compared.models, compared.text, compared.unit)
    return Comparison(found.path, {**values, "verdict": list(said), "warnings": list(warned)})
