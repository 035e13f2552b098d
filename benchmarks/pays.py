"""Does upcycling pay? MoEs from a dense model that still learns, beside that model on the same tokens and the same FLOPs.

    python benchmarks/pays.py text --data TRAIN.jsonl --validation VALIDATION.jsonl
    python benchmarks/pays.py base              train the dense model in its stable phase
    python benchmarks/pays.py pilot             a fifth of the length, seed 0: choices are made here
    python benchmarks/pays.py run               the arms, three seeds
    python benchmarks/pays.py table             tables, curves and crossing points

Everything is in --work (runs/pays): finished runs are skipped, interrupted ones go on. Arms of one seed see the same
blocks in the same order. Every process uses one thread; --workers says how many run beside each other. What was
decided before the runs is in docs/explanation/pays.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LENGTH, BATCH = 256, 16
BASE_STEPS = 3_662  # of 4,096 tokens: 15 M
PILOT_STEPS = 732  # a fifth
RATE = 2e-3
SAVED_EVERY = 366
DECAY = 0.3  # the last share of a continued training, in which the rate falls to 0
EVALUATED = 12_000  # held-out tokens per domain
SEEDS = (0, 1, 2)


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    if arguments.what == "text":
        split_text(work / "text", arguments.data, arguments.validation)
    elif arguments.what == "base":
        train(base_recipe(work))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "base", "pilot", "run", "one", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/pays"), help="folder of texts and runs")
    parser.add_argument("--data", type=Path, help="rows of text, domain and source to train on")
    parser.add_argument("--validation", type=Path, help="rows from other files")
    return parser.parse_args()


# -- text ---------------------------------------------------------------------------------------------------------


def split_text(out: Path, data: Path, validation: Path) -> None:
    """Three tenths of the files for the base and the rest for what follows; half of the validation for each decision.

    No arm reads again what the base has read, and the pilot's held-out text is not the final one's.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = ("base", "continued", "pilot", "final")
    files = {name: (out / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            files["base" if _tenth(json.loads(line)["source"]) < 3 else "continued"].write(line)
    with validation.open(encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            files["final" if index % 2 else "pilot"].write(line)
    for file in files.values():
        file.close()


def _tenth(source: str) -> int:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big") % 10


# -- the dense model ------------------------------------------------------------------------------------------------


def base_recipe(work: Path) -> dict[str, Any]:
    """1.05 M parameters without embeddings, trained at a constant rate: it still learns when it is converted."""
    return {
        "model": {
            "attention": "eager",
            "config": {
                "model_type": "llama",
                "hidden_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "intermediate_size": 512,
                "max_position_embeddings": 512,
                "tie_word_embeddings": True,
            },
        },
        "tokenizer": 2048,
        "data": _data(work, "base", "final", 0),
        "evaluation": {"every": SAVED_EVERY, "tokens": EVALUATED},
        "trainer": {
            **_trainer(BASE_STEPS),
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 100,
            "save_total_limit": None,  # the pilot starts from an earlier one
        },
        "device": "cpu",
        "out": str(work / "base"),
    }


def _data(work: Path, text: str, held_out: str, seed: int) -> dict[str, Any]:
    return {
        "sources": [{"path": str(work / "text" / f"{text}.jsonl")}],
        "validation": [{"path": str(work / "text" / f"{held_out}.jsonl")}],
        "length": LENGTH,
        "seed": seed,
    }


def _trainer(steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "adam_beta2": 0.99,
        "save_steps": SAVED_EVERY,
        "report_to": "none",
    }


def train(recipe: dict[str, Any]) -> None:
    """A run from the start or from where it stopped; nothing if it is finished."""
    import torch

    import smolmoe
    from smolmoe.training.checkpoints import whole_checkpoints

    torch.set_num_threads(1)
    out = Path(recipe["out"])
    if not (out / "summary.json").is_file():
        smolmoe.train(recipe, resume="latest" if whole_checkpoints(out) else None, overwrite=True)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    print(f"{summary['held_out']['loss']:.4f} in {summary['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
