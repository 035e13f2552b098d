"""Named experts on a real model: routers first, then everything, and the dense model on the same text.

Five experts, one a domain and one a token, so a token costs what it costs in the dense model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from real_runs import LENGTH, domain_files, record, say, summary, trained

ROUTER_STEPS, ROUTER_BATCH = 32, 8
JOINT_STEPS, JOINT_BATCH = 36, 16
TRAININGS = ("routers", "joint", "dense")
LOOKS = ("before", "after-routers", "after")
# Short documents, so that there are many of them.
PROBE = {"length": LENGTH, "document_tokens": 128, "tokens": 2000, "probe_tokens": 128, "loss_tokens": 900}
COMPARED = {"length": LENGTH, "document_tokens": LENGTH, "tokens": 3000, "by": "domain", "speed": False}
ROUTED, PROMPT = 8, 400  # documents of each domain, and characters of each, that `route` reads


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.out / "experts"
    names = {domain: [index] for index, domain in enumerate(domain_files(arguments))}
    joint = {"data": {"skip": ROUTER_STEPS * ROUTER_BATCH}, "trainer": joint_trainer()}
    guided = {"guidance": {"weight": 0.35}, "routing": {"learning_rate": 5e-4}}
    moe, routers, last = folder / "moe", folder / "routers" / "model", folder / "joint" / "model"
    stages: dict[str, Callable[[], object]] = {
        "moe": lambda: converted(arguments, moe),
        "routers": lambda: trained(arguments, folder / "routers", moe, router_stage(names)),
        "joint": lambda: trained(arguments, folder / "joint", routers, joint | guided),
        "dense": lambda: trained(arguments, folder / "dense", arguments.model, joint),
        "before": lambda: look(arguments, moe, folder / "before"),
        "after-routers": lambda: look(arguments, routers, folder / "after-routers"),
        "after": lambda: look(arguments, last, folder / "after", losses=True, dense=str(arguments.model)),
        "route": lambda: routed(arguments, last, folder / "route.json"),
        "compare": lambda: compared(arguments, folder),
    }
    for stage in arguments.arms or stages:
        print(f"== {stage}", flush=True)
        stages[stage]()
    record("experts", figures(folder))


def converted(arguments: argparse.Namespace, out: Path) -> Path:
    from smolmoe import upcycle

    if not (out / "smolmoe.json").is_file():
        text = arguments.text / "train.jsonl"
        options: dict[str, Any] = {"experts": 5, "top_k": 1, "router": "domains", "router_data": text}
        upcycle(arguments.model, out, **options, seed=arguments.seed, overwrite=True)
    return out


def router_stage(names: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "trainable": "routers",
        "guidance": {"weight": 1.0, "experts": names},
        "trainer": {
            "max_steps": ROUTER_STEPS,
            "per_device_train_batch_size": ROUTER_BATCH,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "save_strategy": "no",
        },
    }


def joint_trainer() -> dict[str, Any]:
    return {
        "max_steps": JOINT_STEPS,
        "per_device_train_batch_size": JOINT_BATCH // 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "warmup_steps": 4,
        "save_steps": JOINT_STEPS // 2,
    }


def look(arguments: argparse.Namespace, model: Path, out: Path, **options: Any) -> None:
    """A probe on the validation text; linear probes are fitted on the training text."""
    from smolmoe import probe

    if not (out / "index.html").is_file():
        asked = {**PROBE, "losses": False, "seed": arguments.seed, **options}
        fit = arguments.text / "train.jsonl"
        probe(model, arguments.text / "validation.jsonl", out, **asked, fit_data=fit, overwrite=True, report=say)


def routed(arguments: argparse.Namespace, model: Path, out: Path) -> None:
    """Which expert `route` chooses from the beginning of validation documents, by domain."""
    from smolmoe import route

    if out.is_file():
        return
    choices: dict[str, list[str]] = {}
    for line in (arguments.text / "validation.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        chosen = choices.setdefault(row["domain"], [])
        if len(chosen) < ROUTED:
            chosen.append(route(model, row["text"][:PROMPT]).name)
    out.write_text(json.dumps(choices, indent=1), encoding="utf-8")


def compared(arguments: argparse.Namespace, folder: Path) -> None:
    """Losses by domain: the model as it was, the MoE, and the dense model trained on the same text."""
    from smolmoe import compare

    out = folder / "compare"
    if not (out / "compare.json").is_file():
        models = {"before": arguments.model, "MoE": folder / "joint" / "model", "dense": folder / "dense" / "model"}
        compare(models, arguments.text / "validation.jsonl", **COMPARED, out=out, overwrite=True, report=say)


def figures(folder: Path) -> dict[str, Any]:
    """What the finished stages found."""
    from smolmoe.results.probe import FILE, read_result

    found: dict[str, Any] = {
        "trainings": {run: summary(folder / run) for run in TRAININGS if (folder / run / "summary.json").is_file()}
    }
    for look in LOOKS:
        if (folder / look / FILE).is_file():
            result = read_result(folder / look).to_json()
            kept = ("domains", "documents", "tokens", "matrix", "accuracy", "last_third", "losses", "seconds")
            found[look] = {key: result[key] for key in kept}
    files = {"route": folder / "route.json", "compare": folder / "compare" / "compare.json"}
    return found | {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
