"""A run folder with everything that a report shows, small and from a seed; names try to break the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from probe_json import write_metrics, write_probe
from safetensors.torch import save_file

EXAMPLES = Path(__file__).parent / "examples"
BASE = json.loads((EXAMPLES / "compare.json").read_text())["models"][0]["checkpoints"][0]["sha256"]
HOSTILE = "</script><b>moe"
CHECKS = [
    {
        "name": "logits",
        "passed": True,
        "measured": 9e-6,
        "limit": 1.7e-4,
        "meaning": "The MoE's logits are <i>those</i>.",
    },
    {"name": "cache", "passed": True, "measured": 4e-6, "limit": 1.7e-4, "meaning": "So they are with the KV cache."},
]


def write_model(folder: Path, **provenance: Any) -> Path:
    """A model folder of a tensor, a config and a smolmoe.json."""
    folder.mkdir(parents=True)
    save_file({"model.embed_tokens.weight": torch.zeros(4, 8)}, folder / "model.safetensors")
    config = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "smolmoe.json").write_text(json.dumps({"schema_version": 1, **provenance}))
    return folder


def upcycled(name: str = "runs/dense") -> dict[str, Any]:
    """What smolmoe.json says after an upcycling."""
    return {
        "stage": "upcycle",
        "target": "mixtral",
        "sources": {"base": {"name": name, "revision": None, "sha256": BASE}},
        "parameters": {"total": 4_800_000, "active": 1_600_000},
        "claim": {"kind": "exact", "reason": "The chosen gates sum to 1."},
        "verification": {
            "passed": True,
            "checks": CHECKS,
            "text": "sample text",
            "logits": {"dense_loss": 3.5, "loss": 3.5},
        },
        "seed": 0,
        "versions": {"smolmoe": "0.1.0"},
        "command": f"smolmoe upcycle /home/somebody/{name} out",
    }


def write_run(
    folder: Path, *, experts: int = 4, seed: int = 0, finished: bool = True, source: str = BASE, text: str = "one text"
) -> Path:
    """A training's folder, of a model that was made of `source` (a hash), measured on `text`."""
    write_metrics(folder, layers=3, experts=experts, seed=seed)
    recipe = {"model": {"path": "runs/moe"}, "seed": seed, "note": HOSTILE}
    (folder / "run.json").write_text(json.dumps({"schema_version": 1, "recipe": recipe}))
    if finished:
        held = {
            "loss": 3.1 - seed / 100,
            "by_domain": {"math": 2.6, "code": 3.1 + seed},
            "tokens": 900,
            "documents": 30,
        }
        sizes = {"total": 4_800_000, "active": 1_600_000 if experts else 4_800_000}
        samples = [{"prompt": "Once <b>upon", "text": f" a time {HOSTILE} {experts}"}]
        summary = {"samples": samples, "tokens": 122_880, "flops": 1e12, "parameters": sizes, "held_out": held}
        (folder / "summary.json").write_text(json.dumps(summary))
        documents = {"nll": [90.0] * 30, "tokens": [30] * 30, "domains": ["math", "code"] * 15, "text": text}
        (folder / "held_out.json").write_text(json.dumps(documents))
    record = {"schema_version": 1, "stage": "train", "source": {"folder": "model", "sha256": source}}
    (folder / "checkpoints" / "checkpoint-40").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-40" / "smolmoe.json").write_text(json.dumps(record))
    return folder


def write_all(root: Path) -> Path:
    """A pipeline's folder in which every section of the report has something to show."""
    write_model(root / HOSTILE.replace("/", "⁄"), **upcycled())
    write_run(root / "dense", experts=0, seed=1)
    write_run(root / "trained")
    domains = ("math", "code", "<i>web</i></script>")
    sizes: dict[str, Any] = {"domains": domains, "experts": 4, "layers": 3, "length": 24}
    write_probe(root / "before", **sizes, sharpness=0.1, seed=1)
    write_probe(root / "after", **sizes)
    after = {
        "MoE": _row(3.05) | {"difference": {"value": -0.05, "low": -0.06, "high": -0.04}},
        "dense, <b>same</b> tokens": _row(3.1),
    }
    before = {"label": "dense", "first": 7.0, "loss": 3.2, "tokens": 1_000_000}
    report = {"documents": 30, "held_out_tokens": 900, "before": before, "after": after, "boundary": 0}
    (root / "boundary").mkdir()
    (root / "boundary" / "report.json").write_text(json.dumps(report | {"reference": "dense, <b>same</b> tokens"}))
    for name in ("compare", "sweep", "bench"):
        (root / name).mkdir()
        shutil.copyfile(EXAMPLES / f"{name}.json", root / name / f"{name}.json")
    return root


def _row(final: float) -> dict[str, Any]:
    return {
        "losses": {"0": 3.2, "10": 3.15, "40": final},
        "final": final,
        "tokens": 400_000,
        "flops": 2e12,
        "jump": -1e-9,
    }
