"""Experts by name. The names are kept in a model's config.json, which every class of transformers carries along.

`expert_names` has an entry for each of the E experts, a string or null for a free one; several experts may share a
name. `expert_layers` are the MoE layers that were guided by these names, null for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smolmoe.errors import RequestError, SourceError

NAMES = "expert_names"
LAYERS = "expert_layers"


def expert_names(config: Any) -> tuple[str | None, ...] | None:
    """The name of each expert, None for a free one; None where the model's experts have no names.

    Raises:
        SourceError: the config holds something else under that key.
    """
    found = getattr(config, NAMES, None)
    if found is None:
        return None
    if not isinstance(found, list | tuple) or not all(name is None or isinstance(name, str) for name in found):
        raise SourceError("is not a list of names.", field=NAMES, value=found)
    return tuple(found)


def named_layers(config: Any) -> tuple[int, ...] | None:
    """The layers whose routers were guided by name; None for all MoE layers."""
    found = getattr(config, LAYERS, None)
    return None if found is None else tuple(found)


def set_expert_names(config: Any, names: Sequence[str | None] | None, layers: Sequence[int] | None = None) -> None:
    """Put names into a config, in place; None removes them."""
    setattr(config, NAMES, None if names is None else list(names))
    setattr(config, LAYERS, None if layers is None else list(layers))


def group_by_name(names: Sequence[str | None]) -> dict[str, tuple[int, ...]]:
    """Name -> its experts, in the order in which names appear; free experts are in none."""
    found: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(names):
        if name is not None:
            found[name] = (*found.get(name, ()), index)
    return found


def find_experts(config: Any, asked: Sequence[str | int], experts: int) -> tuple[int, ...]:
    """The experts of these names or indices, each once, in ascending order.

    Args:
        asked: names, or indices as numbers or digits; a name made of digits is a name.
        experts: E.

    Raises:
        RequestError: nothing is asked, or there is no such expert; known names are listed.
    """
    groups = group_by_name(expert_names(config) or ())
    found: set[int] = set()
    for item in asked:
        if isinstance(item, str) and item in groups:
            found |= set(groups[item])
            continue
        index = int(item) if isinstance(item, int) or item.lstrip("-").isdigit() else None
        if index is None or not 0 <= index < experts:
            known = f"the names {', '.join(groups)}" if groups else "no names"
            raise RequestError(
                f"no such expert: the model has {known} and experts 0 to {experts - 1}.", field="expert", value=item
            )
        found.add(index)
    if not found:
        raise RequestError("no expert is given.", field="expert", value=list(asked))
    return tuple(sorted(found))
