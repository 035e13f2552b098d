"""An MoE whose experts were partly re-initialised recovers: from the text alone, or from the dense model's logits."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_runs import LENGTH, domain_files, record, say, summary, trained

CHARACTERS = 30_000  # of each domain
REQUEST = {"experts": 2, "top_k": 1, "diversify": "drop", "drop_ratio": 0.1}
STEPS, BATCH = 16, 8
ARMS = ("text", "logits")
COMPARED = {"length": LENGTH, "document_tokens": 128, "tokens": 2000, "by": "domain", "speed": False}


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.out / "distill"
    folder.mkdir(parents=True, exist_ok=True)
    text = few(arguments, folder / "text.jsonl")
    taught = {"distill": {"cache": str(folder / "cache"), "weight": 1.0}}
    stages: dict[str, Callable[[], object]] = {
        "moe": lambda: converted(arguments, folder / "moe"),
        "cache": lambda: cached(arguments, text, folder / "cache"),
        "text": lambda: trained(arguments, folder / "text", folder / "moe", stage(text)),
        "logits": lambda: trained(arguments, folder / "logits", folder / "moe", stage(text) | taught),
        "compare": lambda: compared(arguments, folder),
    }
    for name in arguments.arms or stages:
        print(f"== {name}", flush=True)
        stages[name]()
    record("distill", figures(folder))


def converted(arguments: argparse.Namespace, out: Path) -> None:
    from smolmoe import upcycle

    if not (out / "smolmoe.json").is_file():
        upcycle(arguments.model, out, **REQUEST, seed=arguments.seed, overwrite=True)


def cached(arguments: argparse.Namespace, text: Path, out: Path) -> None:
    from smolmoe import distill

    if not (out / "cache.json").is_file():
        distill(str(arguments.model), [str(text)], out, device="cpu", batch_tokens=2048, overwrite=True)


def compared(arguments: argparse.Namespace, folder: Path) -> None:
    from smolmoe import compare

    if not (folder / "compare" / "compare.json").is_file():
        models = {"teacher": arguments.model, "MoE before": folder / "moe"}
        models |= {f"MoE, from the {arm}": folder / arm / "model" for arm in ARMS}
        validation = arguments.text / "validation.jsonl"
        compare(models, validation, **COMPARED, out=folder / "compare", overwrite=True, report=say)


def few(arguments: argparse.Namespace, out: Path) -> Path:
    """The first documents of each domain, as many characters of each."""
    if not out.is_file():
        kept = []
        for domain in domain_files(arguments).values():
            characters = 0
            for line in domain.read_text(encoding="utf-8").splitlines():
                if characters < CHARACTERS:
                    kept.append(line)
                    characters += len(json.loads(line)["text"])
        out.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    return out


def stage(text: Path) -> dict[str, Any]:
    return {
        "data": {"sources": [{"path": str(text)}]},
        "evaluation": {"every": 1000, "tokens": 200, "per_document": 100},
        "trainer": {
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH // 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4,
            "warmup_steps": 2,
            "save_strategy": "no",
        },
    }


def figures(folder: Path) -> dict[str, Any]:
    """What the finished stages found."""
    found: dict[str, Any] = {"request": REQUEST}
    files = {"cache": folder / "cache" / "cache.json", "compare": folder / "compare" / "compare.json"}
    found |= {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    done = {arm: summary(folder / arm) for arm in ARMS if (folder / arm / "summary.json").is_file()}
    return found | {"trainings": done}
