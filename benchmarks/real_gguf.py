"""The specialised MoE in llama.cpp: its log-probabilities compared with those of transformers, and smaller files."""

from __future__ import annotations

import argparse
import json
from typing import Any

from real_runs import record

QUANTS = ("f16", "q8_0")


def run(arguments: argparse.Namespace) -> None:
    from smolmoe import export, verify

    folder = arguments.out / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    moe = arguments.out / "experts" / "joint" / "model"
    file = folder / "verify.json"
    if not file.is_file():
        found = verify(moe, engine="llama.cpp", python=arguments.python, timeout=1800, seed=arguments.seed)
        file.write_text(json.dumps(found.to_json()), encoding="utf-8")
    sizes: dict[str, Any] = {}
    for quant in QUANTS:
        out = folder / f"moe-{quant}.gguf"
        if not out.is_file():
            export(moe, out, to="gguf", quant=quant)
        sizes[quant] = out.stat().st_size
    record("gguf", {"verify": json.loads(file.read_text()), "bytes": sizes})
