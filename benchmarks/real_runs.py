"""What the parts of `real.py` share: text by domain, trainings that resume, and their figures as files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import HERE, describe

FIGURES = HERE / "results" / "real"
LENGTH = 256


def domain_files(arguments: argparse.Namespace) -> dict[str, Path]:
    """The training text in one file a domain, in alphabetical order, so that a recipe can weight them."""
    folder = arguments.out / "text"
    if not folder.is_dir():
        rows: dict[str, list[str]] = {}
        for line in (arguments.text / "train.jsonl").read_text(encoding="utf-8").splitlines():
            rows.setdefault(json.loads(line)["domain"], []).append(line)
        folder.mkdir(parents=True)
        for domain, lines in rows.items():
            (folder / f"{domain}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {file.stem: file for file in sorted(folder.glob("*.jsonl"))}


def trained(arguments: argparse.Namespace, out: Path, model: Path, changes: dict[str, Any]) -> Path:
    """One training with an equal share of tokens for each domain; a finished one is left, another resumes."""
    from smolmoe import train
    from smolmoe.recipe.files import merge
    from smolmoe.training.checkpoints import whole_checkpoints

    recipe = {
        "model": {"path": str(model), "attention": "eager"},
        "data": {
            "sources": [{"path": str(file), "weight": 1.0} for file in domain_files(arguments).values()],
            "validation": [{"path": str(arguments.text / "validation.jsonl")}],
            "length": LENGTH,
            "seed": arguments.seed,
        },
        # A look only: the losses of the tables are those of `compare`, on more text.
        "evaluation": {"every": 1000, "tokens": 1000, "per_document": 128},
        "trainer": {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.0},
            "adam_beta2": 0.99,
            "save_total_limit": 1,
            "report_to": "none",
        },
        "seed": arguments.seed,
        "device": "cpu",
        "out": str(out),
    }
    if not (out / "summary.json").is_file():
        resume = "latest" if whole_checkpoints(out) else None
        train(merge(recipe, changes), resume=resume, overwrite=True, report=say)
    return out


def say(stage: str, done: int, total: int, detail: str = "", /) -> None:
    print(stage, done, total, detail, flush=True)


def summary(run: Path) -> dict[str, Any]:
    """Steps, tokens, seconds and losses of a training."""
    found = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = ("steps", "tokens", "flops", "train_seconds", "held_out", "before", "change")
    return {key: found[key] for key in kept if key in found}


def record(part: str, figures: dict[str, Any]) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    whole = {"machine": describe(), **without_places(figures)}
    (FIGURES / f"{part}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def without_places(values: Any) -> Any:
    """The same figures without this machine's folders: of a path, its last part; no commands."""
    if isinstance(values, dict):
        return {key: without_places(value) for key, value in values.items() if key not in ("command", "python")}
    if isinstance(values, list | tuple):
        return [without_places(value) for value in values]
    if isinstance(values, Path) or (isinstance(values, str) and values.startswith("/")):
        return Path(values).name
    return values


def read(part: str) -> dict[str, Any] | None:
    file = FIGURES / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
