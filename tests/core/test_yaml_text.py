"""YAML of any origin: read at once, or refused at once with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolmoe.core.provenance import origin
from smolmoe.core.yaml_text import MOST_BYTES, parse_yaml
from smolmoe.errors import RequestError
from smolmoe.recipe.files import load


def laughs(depth: int, item: str = "[*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]") -> str:
    return "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {item.format(n - 1)}\n" for n in range(1, depth))


MERGES = "{{<<: [*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}]}}"
BAD = {
    "laughs": (laughs(30), "more than 100,000 values"),
    "laughs by merging": (laughs(30, MERGES), "more than 100,000 values"),
    "itself": ("a: &a [*a]", "what it is in"),
    "itself, merged": ("a: &a {<<: *a}", "what it is in"),
    "deep": ("[" * 5000 + "]" * 5000, "deeply"),
    "long": ("a: " + "x" * MOST_BYTES, "more than"),
    "twice": ("out: a\nmodel: {}\nout: b", r"'out' stands twice.*line 3"),
    "twice, as text": ("1: a\n'1': b", "'1' stands twice"),
    "digits": ("a: " + "9" * 5000, "digits"),
    "Python": ("a: !!python/object/apply:os.system [ls]", "os.system"),
    "bytes": ("a: !!binary aGFsbG8=", "binary"),
    "set": ("a: !!set {b, c}", "set"),
    "two documents": ("a: 1\n---\nb: 2", "document"),
    "no YAML": ("a: [1", "expected"),
    "null bytes": ("a: \0", "special characters"),
    "list as key": ("? [a]\n: b", "unhashable"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_recipe_is_is_refused(name: str, tmp_path: Path) -> None:
    text, says = BAD[name]
    with pytest.raises(ValueError, match=says):
        parse_yaml(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RequestError, match=r"recipe\.yaml"):
        load(str(tmp_path / "recipe.yaml"))
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    assert "datasets" not in origin(str(tmp_path), tmp_path)


def test_what_a_recipe_may_have_is_read() -> None:
    text = "base: &b {rate: 1e-4, day: 2024-01-01}\none: {<<: *b, rate: 2}\ntwo: [*b, *b, null, yes, .5]\n"
    base = {"rate": 1e-4, "day": "2024-01-01"}
    values = parse_yaml(text)
    assert values == {"base": base, "one": base | {"rate": 2}, "two": [base, base, None, True, 0.5]}
    values["two"][0]["rate"] = 3
    assert values["base"] == values["two"][1] == base  # nothing is shared


def test_aliases_in_a_change_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("out: a")
    bomb = laughs(30).replace("\n", ", ").rstrip(", ")
    with pytest.raises(RequestError, match="more than 100,000 values"):
        load(str(tmp_path / "recipe.yaml"), [f"data={{{bomb}}}"])
