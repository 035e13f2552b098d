"""requirements.lock holds what pyproject.toml asks for; libraries whose inner parts are used have an upper bound."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
INNER_PARTS_USED = ("accelerate", "peft", "torch", "transformers", "trl")


@pytest.fixture(scope="module")
def newest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("newest", ROOT / "scripts" / "newest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def asked(newest: ModuleType, pyproject: dict[str, Any]) -> dict[str, Requirement]:
    """What the package and its development ask for, by name; the package's own word before that of development."""
    project = pyproject["project"]
    return {one.name.replace("_", "-"): one for one in (*newest.needed(project, "dev"), *newest.needed(project))}


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].strip().split("==") for line in lines if line and line[0] not in " #"]
    return {name: Version(version) for name, version in pins}


def test_every_requirement_is_locked_at_a_version_it_allows(
    asked: dict[str, Requirement], locked: dict[str, Version]
) -> None:
    assert len(asked) > 30
    assert [str(one) for name, one in asked.items() if not one.specifier.contains(locked[name])] == []


@pytest.mark.parametrize("name", INNER_PARTS_USED)
def test_the_upper_bound_is_the_next_minor_version(
    name: str, asked: dict[str, Requirement], locked: dict[str, Version]
) -> None:
    major, minor = locked[name].release[:2]
    assert f"<{major}.{minor + 1}" in str(asked[name].specifier).split(",")


def test_torch_is_locked_with_the_needs_of_its_cpu_build(pyproject: dict[str, Any], locked: dict[str, Version]) -> None:
    (torch,) = pyproject["tool"]["uv"]["dependency-metadata"]
    assert Version(torch["version"]) == locked["torch"]
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in locked)


def test_newest_drops_upper_bounds_alone(newest: ModuleType) -> None:
    assert newest.unbounded(Requirement("transformers[serving]>=5.24,<5.25")) == "transformers[serving]>=5.24"
    assert newest.unbounded(Requirement("ruff")) == "ruff"
