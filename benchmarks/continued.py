"""Is the MoE worth it? A dense model upcycled and trained on, beside itself on the same tokens and on the same FLOPs.

    python benchmarks/continued.py run --model DIR --data TRAIN.jsonl --validation VALIDATION.jsonl
    python benchmarks/continued.py table

Runs go to runs/continued/ARM/seed-N; finished ones are skipped and interrupted ones go on. Arms of one seed see the
same blocks in the same order. Every process uses one thread; --workers says how many run beside each other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workers import parse_arguments, run_all

ROOT = Path("runs/continued")
TOKENS = 500_000
LENGTH, BATCH = 256, 8
STEPS = TOKENS // (LENGTH * BATCH)
LEARNING_RATE = 1e-4
BALANCED = {"objective": {"load_balance": 0.01, "z_loss": 0.001}}

# name -> (upcycle options or None for the dense model, what the recipe says differently)
ARMS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "dense": (None, {}),
    "dense-equal-flops": (None, {}),
    "copy": ({}, BALANCED),
    "drop": ({"diversify": "drop", "drop_ratio": 0.5}, BALANCED),
    "split": ({"experts": 16, "top_k": 4, "granularity": 2}, {**BALANCED, "routing": {"tie_groups": 60}}),
    "residual": ({"shared": "residual"}, BALANCED),
}

# Tried on half the tokens and one seed: what might help.
EXPLORED: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "dense, lr 1e-4": (None, {}),
    "dense, lr 3e-4": (None, {"trainer": {"learning_rate": 3e-4}}),
    "dense, lr 1e-3": (None, {"trainer": {"learning_rate": 1e-3}}),
    "copy, lr 1e-4": ({}, BALANCED),
    "copy, lr 3e-4": ({}, {**BALANCED, "trainer": {"learning_rate": 3e-4}}),
    "copy, experts lr 5e-4": ({}, {**BALANCED, "expert_learning_rate": 5e-4}),
    "copy, no balance": ({}, {}),
    "copy, top-4": ({"top_k": 4}, BALANCED),
    "copy, routers of domains": ({"experts": 10, "router": "domains"}, BALANCED),
    "drop .25": ({"diversify": "drop", "drop_ratio": 0.25}, BALANCED),
    "noise .02": ({"diversify": "noise"}, BALANCED),
}


def main() -> None:
    arguments = parse_arguments(__doc__, list(ARMS), list(EXPLORED))
    if arguments.what == "table":
        write_results()
    elif arguments.what == "one":
        run_one(arguments, arguments.arms[0], arguments.seeds[0])
    else:
        run_all(__file__, arguments)


def write_results() -> None:
    """Put the tables into docs/reference/results.md, between the markers there; `figures.py` draws them."""
    from continued_table import machine_line, show
    from machine import describe, put_between

    docs = Path(__file__).resolve().parents[1] / "docs"
    text = show(ROOT, list(ARMS), list(EXPLORED))
    where = describe()
    text += f"\n\nMeasured on {where['cpu']}, one thread a run; {machine_line(ROOT)}."
    put_between(docs / "reference" / "results.md", "continued", text)
    print(text)


def run_one(arguments: argparse.Namespace, arm: str, seed: int) -> None:
    import torch

    from smolmoe.training.checkpoints import whole_checkpoints
    from smolmoe.training.run import train

    torch.set_num_threads(1)
    folder = ROOT / arm / f"seed-{seed}"
    if not (folder / "summary.json").is_file():
        recipe = arm_recipe(arguments, arm, seed, folder)
        train(recipe, resume="latest" if whole_checkpoints(folder) else None, overwrite=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print(f"{summary['held_out']['loss']:.4f} in {summary['train_seconds']:.0f} s")


def arm_recipe(arguments: argparse.Namespace, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The training recipe of an arm, its MoE made beforehand."""
    from smolmoe.recipe.files import merge

    options, changes = (ARMS | EXPLORED)[arm]
    steps = STEPS // 2 if arm in EXPLORED else STEPS
    model = arguments.model
    if options is not None:
        model = converted(arguments, arm, seed, options)
    recipe = {
        "model": {"path": str(model), "attention": "eager"},
        "data": {
            "sources": [{"path": str(arguments.data)}],
            "validation": [{"path": str(arguments.validation)}],
            "length": LENGTH,
            "seed": seed,
        },
        "evaluation": {"every": steps // 4, "at": [10, 30], "tokens": 8000},
        "trainer": {
            "max_steps": steps,
            "per_device_train_batch_size": BATCH,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 30,
            "adam_beta2": 0.99,
            "save_steps": steps // 2,
            "save_total_limit": 1,
            "report_to": "none",
        },
        "seed": seed,
        "device": "cpu",
        "out": str(folder),
    }
    recipe = merge(recipe, changes)
    if arm == "dense-equal-flops":
        recipe["trainer"]["max_steps"] = equal_steps(arguments, seed, recipe)
    return recipe


def converted(arguments: argparse.Namespace, arm: str, seed: int, options: dict[str, Any]) -> Path:
    from smolmoe import upcycle

    out = ROOT / arm / f"moe-{seed}"
    if not (out / "smolmoe.json").is_file():
        if options.get("router") == "domains":
            options = {**options, "router_data": arguments.data}
        upcycle(arguments.model, out, seed=seed, overwrite=True, **options)
    return out


def equal_steps(arguments: argparse.Namespace, seed: int, recipe: dict[str, Any]) -> int:
    """Steps of the dense model that cost what the copies' training costs."""
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.estimate import estimate, steps_for_flops

    moe = converted(arguments, "copy", seed, {})
    costs = estimate(parse(TrainRecipe, {**recipe, "model": {"path": str(moe)}}))
    return steps_for_flops(parse(TrainRecipe, recipe), costs.flops)


if __name__ == "__main__":
    main()
