"""Does upcycling pay? MoEs from a dense model that still learns, beside it on the same tokens and on the same FLOPs.

    python benchmarks/pays.py text --data TRAIN.jsonl --validation VALIDATION.jsonl
    python benchmarks/pays.py base       train the dense model in its stable phase
    python benchmarks/pays.py pilot      choices, at a fifth of the length on seed 0
    python benchmarks/pays.py run        the arms, three seeds
    python benchmarks/pays.py table      tables, curves and crossing points

Everything is in --work: finished runs are skipped, interrupted ones go on. Arms of one seed see the same blocks in the
same order. Every process uses one thread; --workers says how many run beside each other. What was decided before the
runs is in docs/explanation/pays.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
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

# The generic model keeps the output head tied, as the dense model has it; native classes that engines serve may not.
# The more important half of the neurons shared, and copies of the other half with gates that are 1 at zero logits.
HALF = {"target": "generic", "shared": 256, "shared_by": "importance", "gates": "independent"}
# Biases that make the load even before the first step, and follow fast at first.
BALANCED = {"objective": {"preset_bias": 200_000, "bias_rate": {0: 0.01, 300: 0.002}}}
NOT_PRESET = {"objective": {"preset_bias": 0, "bias_rate": {0: 0.01, 300: 0.001}}}
# name -> (upcycle options or None for the dense model, what the recipe says differently)
Arm = tuple[dict[str, Any] | None, dict[str, Any]]
ARMS: dict[str, Arm] = {
    "dense": (None, {}),
    "half-16": ({**HALF, "experts": 16, "top_k": 1}, BALANCED),
    "half-8": ({**HALF, "experts": 8, "top_k": 1}, BALANCED),
    "copies-8": ({"experts": 8, "top_k": 2, "target": "generic"}, BALANCED),
    "dense-copies": (None, {}),
    "half-16-top-2": ({**HALF, "gates": "normalised", "experts": 16, "top_k": 2}, BALANCED),
    "dense-top-2": (None, {}),
    "subsets-16": ({**HALF, "granularity": 2, "subsets": "random", "experts": 16, "top_k": 2}, BALANCED),
    "copies-16": ({"experts": 16, "top_k": 2, "target": "generic"}, BALANCED),
    # Branch-Train-MiX (arXiv 2403.07816): a specialist of each domain, merged, and a joint stage.
    "btx": ({"top_k": 2, "target": "generic"}, {"objective": BALANCED["objective"]}),
}
# What the joint stage of Branch-Train-MiX is of the other arms' steps. The specialists share out what is left of the
# dense model's FLOPs.
JOINT = 0.3
JOINT_WARMUP = 50  # no dense run had the merged experts' state of Adam
# Dense arms that run for as many FLOPs as an MoE takes.
SAME_FLOPS = {"dense-copies": "copies-8", "dense-top-2": "half-16-top-2"}


def _half(changes: dict[str, Any], **options: Any) -> Arm:
    from smolmoe.recipe.files import merge

    return {**HALF, "experts": 16, "top_k": 1, **options}, merge(BALANCED, changes)


def _sampled(steps: int) -> dict[str, Any]:
    """Experts chosen at random by their probabilities, less and less so."""
    return {"routing": {"sample": {"linear": {0: 1.0, steps: 0.0}}}}


# Tried by the pilot beside the arms.
PILOT: dict[str, Arm] = {
    "dense, no weight decay": (None, {"trainer": {"weight_decay": 0.0}}),
    "half-16, routers' rate / 10": _half({"routing": {"learning_rate": RATE / 10}}),
    "half-16, experts' rate / 2": _half({"expert_learning_rate": RATE / 2}),
    "half-16, experts' rate x 2": _half({"expert_learning_rate": 2 * RATE}),
    "half-16, experts' moments fresh": _half({"carry": {"experts": False}}),
    "half-16, no weight decay": _half({"trainer": {"weight_decay": 0.0}}),
    "half-16, routers of k-means": _half({}, router="domains", router_centroids="kmeans"),
    "half-16, router std .02": _half({}, router_std=0.02),
    "half-16, first neurons shared": _half({}, shared_by="first"),
    "half-16, bias .001, not preset": _half({"objective": {"bias_rate": 0.001, "preset_bias": 0}}),
    "half-16, load-balancing loss .01": _half({"objective": {"bias_rate": 0, "preset_bias": 0, "load_balance": 0.01}}),
    "half-8, not preset, sampled for 200 steps": _half({**NOT_PRESET, **_sampled(200)}, experts=8),
    "half-4": _half({}, experts=4),
    "half-32": _half({}, experts=32),
    "copies-8, not preset": ({"experts": 8, "top_k": 2, "target": "generic"}, NOT_PRESET),
    "copies-8, load-balancing loss .01": ({"experts": 8, "top_k": 2}, {"objective": {"load_balance": 0.01}}),
}


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    if arguments.what == "text":
        split_text(work / "text", arguments.data, arguments.validation)
    elif arguments.what == "base":
        train(base_recipe(work))
    elif arguments.what == "one":
        train(arm_recipe(work, arguments.arms[0], arguments.seeds[0], pilot=arguments.pilot))
    elif arguments.what == "pilot":
        run_all(work, arguments.arms or [*ARMS, *PILOT], [0], arguments.workers, pilot=True)
    elif arguments.what == "run":
        run_all(work, arguments.arms or list(ARMS), arguments.seeds, arguments.workers, pilot=False)
    else:
        from pays_table import write_results

        write_results(work)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("text", "base", "pilot", "run", "one", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/pays"), help="folder of texts and runs")
    parser.add_argument("--data", type=Path, help="rows of text, domain and source to train on")
    parser.add_argument("--validation", type=Path, help="rows from other files")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *PILOT])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pilot", action="store_true", help="one: a run of the pilot")
    return parser.parse_args()


def run_all(work: Path, arms: Sequence[str], seeds: Sequence[int], workers: int, *, pilot: bool) -> None:
    from workers import run_each

    run_each(__file__, arms, seeds, workers, ["--work", str(work), *(["--pilot"] if pilot else [])])


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
            row = json.loads(line)
            name = "base" if _tenth(row["source"]) < 3 else "continued"
            files[name].write(line)
            if name == "continued":  # for specialists
                domain = f"domain-{row['domain']}"
                if domain not in files:
                    files[domain] = (out / f"{domain}.jsonl").open("w", encoding="utf-8")
                files[domain].write(line)
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


# -- what follows ---------------------------------------------------------------------------------------------------


def arm_recipe(work: Path, arm: str, seed: int, *, pilot: bool) -> dict[str, Any]:
    """The continued training of one arm, its MoE made beforehand."""
    from smolmoe.recipe.files import merge

    options, changes = {**ARMS, **PILOT}[arm]
    start = work / "base" / "checkpoints" / f"checkpoint-{PILOT_STEPS}" if pilot else work / "base" / "model"
    steps = PILOT_STEPS if pilot else BASE_STEPS
    folder = work / ("pilot" if pilot else "runs") / folder_name(arm) / f"seed-{seed}"
    common = {
        "model": {"path": str(start), "attention": "eager"},
        "tokenizer": str(work / "base" / "tokenizer"),
        "data": _data(work, "continued", "pilot" if pilot else "final", seed),
        "carry": {"optimizer": str(start if pilot else work / "base")},
        "evaluation": {"every": steps // 20, "tokens": EVALUATED, "by_document": True},
        "trainer": {**_trainer(steps), "save_total_limit": 1},
        "seed": seed,
        "device": "cpu",
        "out": str(folder),
    }
    if arm == "btx":
        return joint_recipe(work, common, steps)
    if options is not None:
        model = converted(work, start, folder.parent / f"moe-{seed}", seed, options)
        common["model"]["path"] = str(model)
    recipe = merge(common, changes)
    if arm in SAME_FLOPS:
        other = arm_recipe(work, SAME_FLOPS[arm], seed, pilot=pilot)
        recipe["trainer"]["max_steps"] = steps = _equal_steps(recipe, other)
        recipe["evaluation"]["every"] = steps // 20
    recipe["trainer"] |= _stable_then_falling(DECAY)
    return recipe


def _stable_then_falling(decay: float, warmup: int = 0) -> dict[str, Any]:
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": decay, "decay_type": "linear"},
        "warmup_steps": warmup,
    }


def joint_recipe(work: Path, common: dict[str, Any], steps: int) -> dict[str, Any]:
    """Branch-Train-MiX: specialists trained apart on a domain each, merged; the recipe of the joint stage.

    Together they take the FLOPs of the dense model's `steps`. Specialists keep the base's rate and state of Adam, and
    the joint stage has the decay.
    """
    from smolmoe.recipe.files import merge

    options, changes = ARMS["btx"]
    seed, folder = common["seed"], Path(common["out"])
    texts = sorted((work / "text").glob("domain-*.jsonl"))
    joint = round(JOINT * steps)
    recipe = merge(common, changes)
    recipe.pop("carry")
    recipe["trainer"] |= {"max_steps": joint, **_stable_then_falling(0.9, JOINT_WARMUP)}
    recipe["evaluation"]["every"] = joint // 6
    model = folder.parent / f"moe-{seed}"
    untrained = {f"e{i}": common["model"]["path"] for i in range(len(texts))}  # tells the costs
    cost = converted(
        work, Path(common["model"]["path"]), folder.parent / "cost", seed, {**options, "expert": untrained}
    )
    left = steps - _equal_steps(common, merge(recipe, {"model": {"path": str(cost)}}))
    experts = {}
    for text in texts:
        name = text.stem.removeprefix("domain-")
        out = folder.parent / f"{name}-{seed}"
        each = left // len(texts)
        values = {"max_steps": each, "lr_scheduler_type": "constant", "warmup_steps": 0}
        specialist = merge(common, {"trainer": values, "evaluation": {"every": each}, "out": str(out)})
        train(merge(specialist, {"data": _data(work, text.stem, "pilot", seed)}))
        experts[name] = str(out / "model")
    recipe["model"]["path"] = str(
        converted(work, Path(common["model"]["path"]), model, seed, {**options, "expert": experts})
    )
    return recipe


def folder_name(arm: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", arm)


def converted(work: Path, dense: Path, out: Path, seed: int, options: dict[str, Any]) -> Path:
    import smolmoe

    if not (out / "smolmoe.json").is_file():
        text = work / "text" / "base.jsonl"
        read = {"calibration": text} if options.get("shared_by") == "importance" else {}
        read |= {"router_data": text} if options.get("router") == "domains" else {}
        smolmoe.upcycle(dense, out, seed=seed, overwrite=True, verify="quick", **options, **read)
    return out


def _equal_steps(dense: dict[str, Any], moe: dict[str, Any]) -> int:
    """Steps of the dense model that cost what the MoE's training costs."""
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.estimate import estimate, steps_for_flops

    return steps_for_flops(parse(TrainRecipe, dense), estimate(parse(TrainRecipe, moe)).flops)


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
