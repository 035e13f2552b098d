"""One named expert of the specialised MoE as a dense model: what it weighs, and what it loses where."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from real_runs import LENGTH, record, say

EXPERTS = ("code",)
COMPARED = {"length": LENGTH, "document_tokens": 128, "tokens": 600, "by": "domain", "speed": False}


def run(arguments: argparse.Namespace) -> None:
    from smolmoe import compare, extract

    folder = arguments.out / "extract"
    folder.mkdir(parents=True, exist_ok=True)
    moe = arguments.out / "experts" / "joint" / "model"
    for name in EXPERTS:
        file = folder / f"{name}.json"
        if not file.is_file():
            made = extract(moe, folder / name, name, overwrite=True)
            file.write_text(json.dumps(made.to_json()), encoding="utf-8")
    if not (folder / "compare" / "compare.json").is_file():
        models: dict[str, Path] = {"before": arguments.model, "MoE": moe}
        models |= {f"expert {name}": folder / name for name in EXPERTS}
        validation = arguments.text / "validation.jsonl"
        compare(models, validation, **COMPARED, out=folder / "compare", overwrite=True, report=say)
    record("extract", figures(folder))


def figures(folder: Path) -> dict[str, Any]:
    return {
        "experts": {name: json.loads((folder / f"{name}.json").read_text()) for name in EXPERTS},
        "compare": json.loads((folder / "compare" / "compare.json").read_text()),
    }
