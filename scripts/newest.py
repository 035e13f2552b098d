"""Print what smolmoe and its development need, without upper bounds: what `make test-newest` installs.

torch is left out: scripts/install_torch.py chooses its build.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def needed(project: dict[str, Any], extra: str | None = None) -> Iterator[Requirement]:
    """The requirements of an extra (of the package itself without one), those of the extras that it names included."""
    for text in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for name in sorted(requirement.extras):
                yield from needed(project, name)
        else:
            yield requirement


def unbounded(requirement: Requirement) -> str:
    """The requirement with its lower bounds alone."""
    requirement.specifier = SpecifierSet(",".join(str(one) for one in requirement.specifier if one.operator == ">="))
    return str(requirement)


def main() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in (*needed(project), *needed(project, "dev")):
        if requirement.name != "torch":
            print(unbounded(requirement))


if __name__ == "__main__":
    main()
