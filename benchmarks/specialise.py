"""Do experts come to differ, by name and by themselves, and does it pay? Two ways, several seeds, on held-out text.

    python benchmarks/specialise.py run --model DIR --data TRAIN.jsonl --validation VALIDATION.jsonl
    python benchmarks/specialise.py table

Arms: `named` (an expert for each domain, one expert a token; first the routers learn, then everything), `emergent`
(8 experts, two a token, routers from clusters of the text without its tags, balanced over the whole step, less
text) and `dense` (the same text as `named`, in the same order). Runs go to runs/specialise/ARM/seed-N; finished
ones are skipped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workers import parse_arguments, run_all

ROOT = Path("runs/specialise")
ARMS = ("named", "emergent", "dense")
LENGTH = 256
ROUTER_STEPS, ROUTER_BATCH = 100, 8
JOINT_STEPS, JOINT_BATCH = 183, 16
EMERGENT_STEPS = 40


def main() -> None:
    arguments = parse_arguments(__doc__, ARMS)
    if arguments.what == "table":
        from specialise_table import write_results

        write_results(ROOT)
    elif arguments.what == "one":
        run_one(arguments, arguments.arms[0], arguments.seeds[0])
    else:
        run_all(__file__, arguments)


def run_one(arguments: argparse.Namespace, arm: str, seed: int) -> None:
    import torch

    torch.set_num_threads(1)
    folder = ROOT / arm / f"seed-{seed}"
    joint = {"trainer": joint_trainer(), "data": {"skip": ROUTER_STEPS * ROUTER_BATCH}}
    if arm == "dense":
        last = trained(arguments, seed, folder / "joint", arguments.model, joint)
    elif arm == "named":
        moe = converted(arguments, seed, folder / "moe", experts=len(domains(arguments)), top_k=1)
        names = {domain: [index] for index, domain in enumerate(domains(arguments))}
        router = {
            "trainable": "routers",
            "guidance": {"weight": 1.0, "experts": names},
            "trainer": {
                "max_steps": ROUTER_STEPS,
                "learning_rate": 1e-2,
                "warmup_steps": 5,
                "lr_scheduler_kwargs": {"min_lr_rate": 0.0},
            },
        }
        trained(arguments, seed, folder / "routers", moe, router)
        last = trained(
            arguments,
            seed,
            folder / "joint",
            folder / "routers" / "model",
            joint | {"guidance": {"weight": 0.35}, "routing": {"learning_rate": 1e-3}},
        )
        runs = {"routers": folder / "routers", "joint": last}
        look(arguments, seed, folder, moe, runs, dense=arguments.model)
    else:
        moe = converted(arguments, seed, folder / "moe", experts=8, top_k=2, router_centroids="kmeans")
        balance = {"objective": {"load_balance": 0.01, "z_loss": 0.001}}
        short = {"trainer": joint_trainer() | {"max_steps": EMERGENT_STEPS}, "data": {"skip": 0}}
        last = trained(arguments, seed, folder / "joint", moe, joint | balance | short)
        look(arguments, seed, folder, moe, {"joint": last})
    print(f"{json.loads((last / 'summary.json').read_text(encoding='utf-8'))['held_out']['loss']:.4f}")


def domains(arguments: argparse.Namespace) -> list[str]:
    """The domains of the text, in alphabetical order."""
    lines = arguments.data.read_text(encoding="utf-8").splitlines()
    return sorted({json.loads(line)["domain"] for line in lines})


def converted(arguments: argparse.Namespace, seed: int, out: Path, **options: Any) -> Path:
    from smolmoe import upcycle

    if not (out / "smolmoe.json").is_file():
        options |= {"router": "domains", "router_data": arguments.data, "seed": seed, "overwrite": True}
        upcycle(arguments.model, out, **options)
    return out


def joint_trainer() -> dict[str, Any]:
    return {
        "max_steps": JOINT_STEPS,
        "per_device_train_batch_size": JOINT_BATCH,
        "learning_rate": 1e-4,
        "warmup_steps": 20,
        "lr_scheduler_kwargs": {"min_lr_rate": 0.0},
    }


def trained(arguments: argparse.Namespace, seed: int, out: Path, model: Path, changes: dict[str, Any]) -> Path:
    """One training; a finished one is left, an interrupted one goes on."""
    from smolmoe.recipe.files import merge
    from smolmoe.training.checkpoints import whole_checkpoints
    from smolmoe.training.run import train

    recipe = {
        "model": {"path": str(model), "attention": "eager"},
        "data": {
            "sources": [{"path": str(arguments.data)}],
            "validation": [{"path": str(arguments.validation)}],
            "length": LENGTH,
            "seed": seed,
        },
        "evaluation": {"every": 1000, "at": [10, 30, 60, 120], "tokens": 8000},
        "trainer": {
            "per_device_train_batch_size": ROUTER_BATCH,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "adam_beta2": 0.99,
            "save_steps": 60,
            "save_total_limit": 1,
            "report_to": "none",
        },
        "seed": seed,
        "device": "cpu",
        "out": str(out),
    }
    if not (out / "summary.json").is_file():
        resume = "latest" if whole_checkpoints(out) else None
        train(merge(recipe, changes), resume=resume, overwrite=True)
    return out


def look(
    arguments: argparse.Namespace, seed: int, folder: Path, moe: Path, runs: dict[str, Path], dense: Path | None = None
) -> None:
    """Probes with their pages: of the first seed's MoE before, of every MoE after. Losses where experts have names."""
    from smolmoe import probe

    few = {"losses": False, "length": LENGTH, "tokens": 12_000, "probe_tokens": 512, "seed": seed}
    few |= {"fit_data": arguments.data, "overwrite": True}
    before = folder / "before" if seed == 0 else None
    if before is not None and not (before / "index.html").is_file():
        probe(moe, arguments.validation, before, **few)
    after = folder / "after"
    if not (after / "index.html").is_file():
        more = {} if dense is None else {"losses": True, "loss_tokens": 4000, "probe_tokens": 2048}
        shown = {"before": before, "runs": {label: str(run) for label, run in runs.items()}}
        others = {"against": moe, "dense": dense, **shown}
        probe(runs["joint"] / "model", arguments.validation, after, **(few | more), **others)


if __name__ == "__main__":
    main()
