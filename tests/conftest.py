"""What every test stands on: one thread a worker, no network, the real checkpoints and texts beside the checkout."""

from __future__ import annotations

import gc
import logging
import os
import re
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tests import scratch

# Before torch or transformers is imported anywhere: workers share the cores, and nothing may ask the network.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Code that comes with checkpoints goes into a folder of this process and its children.
os.environ["HF_MODULES_CACHE"] = str(scratch.new_folder("modules"))

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

SHARED = Path(__file__).resolve().parents[1] / "../shared"


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and not SHARED.is_dir():
        raise pytest.UsageError(f"CI=true, but {SHARED} is not there: the tests on real checkpoints would be skipped")


def pytest_unconfigure() -> None:
    scratch.remove()


# The Hugging Face libraries log what pyproject.toml's filters would make an error, and their level is set to silence.
_LIBRARIES = ("accelerate", "datasets", "huggingface_hub", "peft", "tokenizers", "transformers", "trl")
_log_warning = logging.Logger.warning


def _warning(self: logging.Logger, message: object, *values: Any, **options: Any) -> None:
    if self.name.split(".")[0] in _LIBRARIES and re.search("deprecated|will be removed", str(message)):
        raise FutureWarning(f"{self.name}: {message}")
    _log_warning(self, message, *values, **{**options, "stacklevel": options.get("stacklevel", 1) + 1})


logging.Logger.warning = _warning  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Timings and results must not depend on how many workers run beside."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """What is there by now is not garbage: accelerate collects after each training, and would look at all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints (`models/`), tokenizers and texts (`data/`)."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real pretrained model."""
    return _real_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma 3 270M, a real pretrained model."""
    return _real_model("gemma3-270m")


def _real_model(name: str) -> Path:
    """A model of the folder of real ones, which is kept outside the checkout."""
    models = Path(os.environ.get("SMOLMOE_REAL_MODELS", "~/.cache/smolmoe/real-models")).expanduser()
    folder = models / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there")
    return folder
