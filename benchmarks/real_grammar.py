"""Grammar correction on a real model: SFT, pairs of its own answers, DPO; of the dense model and of an MoE of copies.

The shipped pipeline `gec-sft-dpo`, through the chat template, with the same rows, steps and rates for both models.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from correction import split
from real_runs import record, say

# Four copies and one of them a token, so a token costs what it costs in the dense model.
ARMS: dict[str, dict[str, Any] | None] = {"dense": None, "moe": {"experts": 4, "top_k": 1}}
STAGES = ("sft", "dpo")
TRAINED, MEASURED, PAIRS = 600, 48, 160  # rows of SFT, rows of the held-out loss, prompts of the pairs
NEW_TOKENS = 96
SCORES = "scores.json"


def run(arguments: argparse.Namespace) -> None:
    from smolmoe import run as run_pipeline
    from smolmoe import upcycle

    folder = arguments.out / "grammar"
    folder.mkdir(parents=True, exist_ok=True)
    files = cut(split(arguments.rows, folder))
    for arm in arguments.arms or ("before", *ARMS):
        if arm == "before":
            scored(arguments.model, files, folder / "before")
            continue
        model, request = arguments.model, ARMS[arm]
        if request is not None:
            model = folder / arm / "moe"
            if not (model / "smolmoe.json").is_file():
                upcycle(arguments.model, model, **request, seed=arguments.seed, overwrite=True)
        run_pipeline(pipeline(files, model, folder / arm / "stages", arguments.seed), report=say)
        for stage in STAGES:
            scored(folder / arm / "stages" / stage / "model", files, folder / arm / f"{stage}-scores")
    record("grammar", figures(folder))


def cut(files: dict[str, str]) -> dict[str, str]:
    """As many rows as the time allows; all held-out rows are scored."""
    for name, side, rows in (("train", "train", TRAINED), ("measured", "held-out", MEASURED)):
        lines = Path(files[side]).read_text(encoding="utf-8").splitlines(keepends=True)
        files[name] = str(Path(files[side]).with_name(f"{name}-{rows}.jsonl"))
        Path(files[name]).write_text("".join(random.Random(0).sample(lines, rows)), encoding="utf-8")
    return files


def scored(model: Path, files: dict[str, str], out: Path) -> None:
    """The held-out rows corrected by a model, through its chat template."""
    from smolmoe import score_corrections

    if not (out / SCORES).is_file():
        asked = {"max_new_tokens": NEW_TOKENS, "batch_size": 29}
        score_corrections(model, data=files["held-out"], chat=True, **asked, out=out, overwrite=True, report=say)


def pipeline(files: dict[str, str], model: Path, out: Path, seed: int) -> dict[str, Any]:
    """The shipped pipeline with our rows and rates."""
    from smolmoe.recipe.files import load, merge

    everywhere = {"seed": seed, "device": "cpu", "answers": 0}  # scored afterwards, each model once
    quiet = {"report_to": "none", "save_strategy": "no", "lr_scheduler_type": "cosine", "adam_beta2": 0.99}
    texts = {"length": 256, "chat": True}
    sft = {
        "model": {"path": str(model)},
        "data": {"train": [files["train"]], "validation": [files["measured"]], **texts},
        "trainer": {**quiet, **_batch(12, 4), "learning_rate": 1e-4, "warmup_steps": 6},
    }
    dpo = {
        "beta": 0.1,
        "data": {"corrections": files["held-out"], "held_out": 0.1, **texts},
        "trainer": {
            **quiet,
            **_batch(8, 4),
            "learning_rate": 5e-6,
            "warmup_steps": 2,
            "precompute_ref_log_probs": True,
        },
    }
    pairs = {"data": files["train"], "prompts": PAIRS, "chat": True, "seed": seed, "device": "cpu"}
    changes = {
        "sft": {"align": merge(everywhere, sft)},
        "pairs": {"pairs": {**pairs, "max_new_tokens": NEW_TOKENS}},
        "dpo": {"align": merge(everywhere, dpo)},
    }
    return merge(load("gec-sft-dpo", [f"out={out}"]), {"stages": changes})


def _batch(rows: int, at_once: int) -> dict[str, int]:
    """The rows of a step, a few at once to save memory."""
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": rows // at_once}


def figures(folder: Path) -> dict[str, Any]:
    """What the finished stages and scores found, without the texts."""
    found: dict[str, Any] = {"scores": {}, "trainings": {}, "pairs": {}, "rows": {}}
    for file in (f"train-{TRAINED}", "held-out"):
        found["rows"][file.split("-")[0]] = len((folder / f"{file}.jsonl").read_text(encoding="utf-8").splitlines())
    names = {"before": folder / "before"}
    names |= {f"{arm}-{stage}": folder / arm / f"{stage}-scores" for arm in ARMS for stage in STAGES}
    found["scores"] = {name: _json(out / SCORES) for name, out in names.items() if (out / SCORES).is_file()}
    for arm in ARMS:
        stages = folder / arm / "stages"
        for stage in STAGES:
            if (stages / stage / "summary.json").is_file():
                summary = _json(stages / stage / "summary.json")
                kept = ("steps", "train_seconds", "before", "after", "drift")
                found["trainings"][f"{arm}-{stage}"] = {key: summary.get(key) for key in kept}
        if (stages / "pairs" / "report.json").is_file():
            found["pairs"][arm] = _json(stages / "pairs" / "report.json")
    return found


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8")))
