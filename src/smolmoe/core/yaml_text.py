"""YAML of unknown origin, read as plain data: bounded in size, unique keys, only the types of JSON."""

from __future__ import annotations

import re
from typing import Any

import yaml

MOST_BYTES = 1 << 20  # of a text; the longest shipped recipe has 4 thousand
MOST_VALUES = 100_000  # with every alias written out
_CORE = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
_KINDS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in _CORE)
_TIME = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number and 2024-01-01 is text, as everywhere but in YAML 1.1."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _TIME]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Plain data in which nothing is shared: to change what one alias stands for does not change the others.

    Raises:
        ValueError: not YAML, too long, too deep, a key twice, an alias in itself, more values than a recipe can have
            when its aliases are written out, or a value of a kind that JSON does not have.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            # Before anything is made of it: aliases of aliases are few nodes, and more values than any memory holds.
            _count(node, {})
            return _unshared(loader.construct_document(node))
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node has with its aliases written out. `known`: those of nodes, 0 while one is counted."""
    if (found := known.get(id(node))) is not None:
        if not found:
            raise ValueError(f"an alias stands for what it is in{_place(node)}")
        return found
    if node.tag not in _KINDS:
        raise ValueError(f"{node.tag} is not a kind of value that a recipe can have{_place(node)}")
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [one for pair in node.value for one in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = total = 1 + sum(_count(one, known) for one in inner)
    if total > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values when its aliases are written out{_place(node)}")
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise ValueError(f"the key {key.value!r} stands twice in one mapping{_place(key)}")
            seen.add(key.value)


def _place(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})"


def _unshared(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _unshared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unshared(inner) for inner in value]
    return value
