"""Links of the pages as the site has them: to pages, to pages made of other files, or plain text."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = spec_from_file_location("smolmoe_site", ROOT / "scripts" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("how-to/cost.md", "[a](scale.md#x)", "[a](scale.md#x)"),
        ("how-to/cost.md", "[a](../../benchmarks/README.md)", "[a](../reference/benchmarks.md)"),
        ("index.md", "[a](../examples/upcycle.ipynb)", "[a](tutorials/notebook-upcycle.md)"),
        ("contributing.md", "[a](docs/reference/cli.md)", "[a](reference/cli.md)"),
        ("contributing.md", "[a](Makefile)", "a"),
        ("index.md", "[a](https://example.org)", "[a](https://example.org)"),
        ("index.md", "```\n[a](../Makefile)\n```", "```\n[a](../Makefile)\n```"),
    ],
)
def test_links(site: ModuleType, page: str, link: str, on_the_site: str) -> None:
    assert site.with_site_links(link, page) == on_the_site


def test_a_notebook_is_a_page(site: ModuleType) -> None:
    book = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title"]},
            {
                "cell_type": "code",
                "source": ["print(1)"],
                "outputs": [{"text": ["1\n"]}, {"data": {"image/png": "abc"}}],
            },
        ]
    }
    expected = "# Title\n\n```python\nprint(1)\n```\n\n```\n1\n```\n\n![output](data:image/png;base64,abc)"
    assert site.notebook(json.dumps(book)) == expected
