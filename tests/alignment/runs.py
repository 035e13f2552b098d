"""Small alignments for the tests: rows and recipes made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from helpers import dense_llama, moe_of, save
from tests.training.runs import WORDS

METHODS = ("sft", "dpo", "cpo")


def write_pairs(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Prompts with a chosen and a rejected answer, of unequal lengths."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt = f"{number} " + " ".join(rng.choices(WORDS, k=rng.randint(2, 8)))
            chosen, rejected = (" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return path


def write_corrections(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Rows of CoEdIT's schema."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = f"{number} " + " ".join(rng.choices(WORDS, k=rng.randint(3, 6)))
            row = {"_id": str(number), "task": "gec", "src": f"Fix grammar: {text}", "tgt": text.replace("the", "a")}
            file.write(json.dumps(row) + "\n")
    return path


def moe_folder(path: Path, model_type: str = "mixtral", **options: Any) -> Path:
    """An MoE whose experts differ a little, so that routing matters."""
    import torch

    model = moe_of(dense_llama(), model_type, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return save(model, path)


def data(folder: Path, **changes: Any) -> dict[str, Any]:
    """A data section on pairs made on the spot."""
    rows = folder / "pairs.jsonl"
    if not rows.is_file():
        write_pairs(rows)
    return {"train": [str(rows)], "held_out": 0.2, **changes}


def recipe(folder: Path, model: Path, method: str, **changes: Any) -> dict[str, Any]:
    """Values of a small run in `folder / method`; `changes` replace whole sections."""
    values: dict[str, Any] = {
        "method": method,
        "model": {"path": str(model)},
        "data": data(folder, length=64),
        "trainer": trainer(),
        "device": "cpu",
        "out": str(folder / method),
    }
    return values | changes


def trainer(**changes: Any) -> dict[str, Any]:
    return {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "report_to": "none",
        **changes,
    }
