"""Small runs for the tests of training: text, checkpoints and recipes made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from helpers import dense_llama, moe_of, save

WORDS = ("the", "sum", "of", "three", "and", "four", "is", "seven", "everyone", "can", "see", "return", "def", "add")


def write_text(path: Path, documents: int = 60, seed: int = 0, domains: tuple[str, ...] = ("code", "prose")) -> Path:
    """Documents of the domains in turn, as JSONL."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = f"{number} " + " ".join(rng.choices(WORDS, k=40))
            file.write(json.dumps({"text": text, "domain": domains[number % len(domains)]}) + "\n")
    return path


def sampling_settings(model: Path, write: bool = False) -> dict[str, Any]:
    """A model's generation settings; those written are such as transformers saves only if they are as it read them."""
    file = model / "generation_config.json"
    if write:
        file.write_text(json.dumps({"eos_token_id": 5, "temperature": 0.9, "top_p": 0.6, "top_k": 20}))
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "transformers_version"}


def dense_folder(path: Path) -> Path:
    return save(dense_llama(), path)


def moe_folder(path: Path, model_type: str = "mixtral", **options: Any) -> Path:
    return save(moe_of(dense_llama(), model_type, **options), path)


def recipe(folder: Path, model: Path | None, **changes: Any) -> dict[str, Any]:
    """Values of a small run in `folder / "run"`; `changes` replace whole sections."""
    text = folder / "text.jsonl"
    if not text.is_file():
        write_text(text)
    values: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"sources": [{"path": str(text)}], "length": 32, "held_out": 0.2, "cache": str(folder / "cache")},
        "evaluation": {"tokens": 200},
        "trainer": trainer(),
        "device": "cpu",
        "out": str(folder / "run"),
    }
    return values | changes


def trainer(**changes: Any) -> dict[str, Any]:
    return {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "report_to": "none",
        **changes,
    }


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
