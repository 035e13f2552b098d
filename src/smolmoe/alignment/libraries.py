"""The optional libraries of alignment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from smolmoe.errors import RequestError


def require(name: str) -> Any:
    """The library of this name.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise RequestError(
            "the library is not installed.",
            field="library",
            value=name,
            fix="pip install 'smolmoe[align]'",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within, deprecation notices of TRL and transformers, and progress bars of datasets, are off."""
    bars = require("datasets.utils")
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            bars.enable_progress_bars()
