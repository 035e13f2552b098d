"""Grammar correction on a real model: SFT, pairs of its own answers, DPO; of the dense model and of an MoE of copies.

The shipped pipeline `gec-sft-dpo`, through the chat template, with the same rows, steps and rates for both models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from correction import split
from real_runs import record, say

# Eager experts and attention of the MoE as the pipeline has them; four copies, two of them a token.
ARMS: dict[str, dict[str, Any] | None] = {"dense": None, "moe": {"experts": 4, "top_k": 2}}
STAGES = ("sft", "dpo")
PAIRS = 240


def run(arguments: argparse.Namespace) -> None:
    from smolmoe import run as run_pipeline
    from smolmoe import upcycle

    folder = arguments.out / "grammar"
    folder.mkdir(parents=True, exist_ok=True)
    files = split(arguments.rows, folder)
    for arm in arguments.arms or ARMS:
        model, request = arguments.model, ARMS[arm]
        if request is not None:
            model = folder / arm / "model"
            if not (model / "smolmoe.json").is_file():
                upcycle(arguments.model, model, **request, seed=arguments.seed, overwrite=True)
        run_pipeline(pipeline(files, model, folder / arm / "stages", arguments.seed), report=say)
    record("grammar", {"arms": {arm: found for arm in ARMS if (found := read(folder / arm / "stages"))}})


def pipeline(files: dict[str, str], model: Path, out: Path, seed: int) -> dict[str, Any]:
    """The shipped pipeline with our rows and rates."""
    from smolmoe.recipe.files import load, merge

    everywhere = {"seed": seed, "device": "cpu", "answers": 1000, "beta": 0.1}
    quiet = {"report_to": "none", "save_strategy": "no", "lr_scheduler_type": "cosine", "adam_beta2": 0.99}
    texts = {"length": 256, "chat": True}
    sft = {
        "model": {"path": str(model)},
        "data": {"train": [files["train"]], "validation": [files["held-out"]], **texts},
        "trainer": {**quiet, "learning_rate": 1e-4, "warmup_steps": 6},
    }
    dpo = {
        "data": {"corrections": files["held-out"], "held_out": 0.1, **texts},
        "trainer": {**quiet, "learning_rate": 5e-6, "warmup_steps": 2},
    }
    pairs = {"data": files["train"], "prompts": PAIRS, "chat": True, "seed": seed, "device": "cpu"}
    changes = {
        "sft": {"align": merge({key: everywhere[key] for key in everywhere if key != "beta"}, sft)},
        "pairs": {"pairs": {**pairs, "max_new_tokens": 96}},
        "dpo": {"align": merge(everywhere, dpo)},
    }
    return merge(load("gec-sft-dpo", [f"out={out}"]), {"stages": changes})


def read(stages: Path) -> dict[str, Any]:
    """What the finished stages of one model wrote, without the texts."""
    found = {}
    for stage in STAGES:
        file = stages / stage / "summary.json"
        if file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
            kept = ("steps", "train_seconds", "before", "after", "drift", "corrections")
            found[stage] = {key: summary.get(key) for key in kept}
    report = stages / "pairs" / "report.json"
    if report.is_file():
        found["pairs"] = json.loads(report.read_text(encoding="utf-8"))
    return found
