"""Does it matter which text one trains on? Six ways to choose the same tokens' worth, several seeds, on held-out text.

    python benchmarks/selection.py run --model DIR --data TRAIN.jsonl --validation VALIDATION.jsonl
    python benchmarks/selection.py table

Every arm takes the same share of every domain's tokens, and the model goes through them once. `random` draws anew for
each seed; what the other arms choose does not depend on it. Choices go to runs/select/ARM/chosen, runs to
runs/select/ARM/seed-N; finished ones are skipped and interrupted runs go on. Every process uses one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workers import parse_arguments, run_all

ROOT = Path("runs/select")
LENGTH, BATCH, STEPS = 256, 8, 120
LEARNING_RATE = 1e-4  # three times that loses more at first than so few steps win back

# name -> what the recipe of the choice says
ARMS: dict[str, dict[str, Any]] = {
    "random": {"score": "random"},
    "entropy": {"score": "entropy"},
    "entropy-plain": {"score": "entropy", "plain": True},
    "perplexity-low": {"score": "perplexity", "prefer": "low"},
    "perplexity-middle": {"score": "perplexity", "prefer": "middle"},
    "perplexity-high": {"score": "perplexity", "prefer": "high"},
}


def main() -> None:
    arguments = parse_arguments(__doc__, list(ARMS))
    if arguments.what == "table":
        from selection_table import write_results

        write_results(ROOT, list(ARMS))
    elif arguments.what == "one":
        run_one(arguments, arguments.arms[0], arguments.seeds[0])
    else:
        run_all(__file__, arguments)


def run_one(arguments: argparse.Namespace, arm: str, seed: int) -> None:
    import torch

    from smolmoe.training.checkpoints import whole_checkpoints
    from smolmoe.training.run import train

    torch.set_num_threads(1)
    folder = ROOT / arm / f"seed-{seed}"
    if not (folder / "summary.json").is_file():
        recipe = training(arguments, chosen(arguments, arm, seed), seed, folder)
        train(recipe, resume="latest" if whole_checkpoints(folder) else None, overwrite=True)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print(f"{summary['held_out']['loss']:.4f} in {summary['train_seconds']:.0f} s")


def chosen(arguments: argparse.Namespace, arm: str, seed: int) -> Path:
    """The file of the arm's rows, chosen where that was not done before."""
    from smolmoe.recipe import parse
    from smolmoe.recipe.select import SelectRecipe
    from smolmoe.selection.run import run_select

    folder = ROOT / arm / (f"chosen-{seed}" if arm == "random" else "chosen")
    if not (folder / "report.json").is_file():
        values = {
            "sources": [{"path": str(arguments.data)}],
            "budget": STEPS * BATCH * LENGTH,
            "unit": "tokens",
            "by": ["domain"],
            "quota": "proportional",
            "model": str(arguments.model),
            "seed": seed,
        }
        run_select(parse(SelectRecipe, values | ARMS[arm]), folder, overwrite=True)
    return folder / "rows.jsonl"


def training(arguments: argparse.Namespace, rows: Path, seed: int, folder: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(arguments.model), "attention": "eager"},
        "data": {
            "sources": [{"path": str(rows)}],
            "validation": [{"path": str(arguments.validation)}],
            "length": LENGTH,
            "seed": seed,
        },
        "evaluation": {"every": STEPS // 6, "tokens": 8000},
        "trainer": {
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "warmup_steps": 30,
            "adam_beta2": 0.99,
            "save_steps": STEPS // 2,
            "save_total_limit": 1,
            "report_to": "none",
        },
        "seed": seed,
        "device": "cpu",
        "out": str(folder),
    }


if __name__ == "__main__":
    main()
