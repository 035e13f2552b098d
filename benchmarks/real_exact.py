"""Every request of docs/how-to/initialisers.md on a real model: what is claimed, what is measured, what holds."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from real_runs import record

FOUR = {"experts": 4, "top_k": 2}
REQUESTS: dict[str, dict[str, Any]] = {
    "2 copies, top-1": {"experts": 2, "top_k": 1},
    "4 copies, top-1": {"experts": 4, "top_k": 1},
    "4 copies, top-2": FOUR,
    "8 copies, top-2": {"experts": 8, "top_k": 2},
    "8 split in two, top-4": {"experts": 8, "top_k": 4, "granularity": 2},
    "full shared expert": {**FOUR, "shared": "full"},
    "half shared expert": {**FOUR, "shared": 768},
    "residual": {**FOUR, "shared": "residual"},
    "routers from domains": {"experts": 5, "top_k": 1, "router": "domains"},
    "noise .02": {**FOUR, "diversify": "noise"},
    "drop, a quarter": {**FOUR, "diversify": "drop", "drop_ratio": 0.25},
    "drop, half": {**FOUR, "diversify": "drop"},
    "every second layer": {**FOUR, "layers": "every:2"},
    "to granitemoeshared": {**FOUR, "target": "granitemoeshared"},
    "to qwen2_moe": {**FOUR, "target": "qwen2_moe", "shared": "full"},
    "to glm4_moe": {**FOUR, "target": "glm4_moe", "shared": "full"},
    "to generic": {**FOUR, "target": "generic"},
    "two specialists": {"experts": 2, "top_k": 1},  # the model, and the dense one that `experts` has trained
}


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.out / "exact"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.arms or REQUESTS:
        file = folder / f"{name.replace(' ', '-')}.json"
        if not file.is_file():
            print(name, flush=True)
            found = measured(arguments, REQUESTS[name], name, folder / "moe")
            file.write_text(json.dumps(found), encoding="utf-8")
    rows = {name: folder / f"{name.replace(' ', '-')}.json" for name in REQUESTS}
    record("exact", {"requests": {name: json.loads(file.read_text()) for name, file in rows.items() if file.is_file()}})


def measured(arguments: argparse.Namespace, request: dict[str, Any], name: str, out: Path) -> dict[str, Any]:
    """One conversion: what it claims, and what its files are measured to do; or what it says where it refuses."""
    from smolmoe import upcycle, verify
    from smolmoe.errors import SmolmoeError, VerificationError

    asked = {**request, "seed": arguments.seed, "overwrite": True}
    if asked.get("router") == "domains":
        asked["router_data"] = arguments.text / "train.jsonl"
    if name == "two specialists":
        asked["expert"] = {"before": str(arguments.model), "after": str(arguments.out / "experts" / "dense" / "model")}
    try:
        sizes = upcycle(arguments.model, out, **asked, dry_run=True).to_json()
        try:
            found = upcycle(arguments.model, out, **asked).verification
        except VerificationError:  # the files are kept
            found = verify(arguments.model, out, seed=arguments.seed)
    except SmolmoeError as error:
        return {"request": request, "refused": str(error)}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert found is not None
    result = found.to_json()
    kept = ("claim", "reference", "lengths", "logits", "ffn_error", "half", "checks", "passed", "seconds")
    return {
        "request": request,
        **{key: sizes[key] for key in ("target", "parameters", "bytes")},
        **{key: result[key] for key in kept},
    }
