"""What every test stands on: one thread a worker, no network, the real checkpoints and texts beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch or transformers is imported anywhere: workers share the cores, and nothing may ask the network.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SHARED = Path(__file__).resolve().parents[1] / "../shared"


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and not SHARED.is_dir():
        raise pytest.UsageError(f"CI=true, but {SHARED} is not there: the tests on real checkpoints would be skipped")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Timings and results must not depend on how many workers run beside."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints (`models/`), tokenizers and texts (`data/`)."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED.resolve()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real pretrained model, from a folder of such models kept outside the checkout."""
    models = Path(os.environ.get("SMOLMOE_REAL_MODELS", "~/.cache/smolmoe/real-models")).expanduser()
    folder = models / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there")
    return folder
