"""Every MoE class that llama.cpp has, through `smolmoe export --to gguf`, run by llama.cpp beside transformers.

    python benchmarks/export_gguf.py ../shared/models --llama-cpp PATH --work runs/gguf

Goes on where it was stopped, prints the table, and writes it between the markers in docs/how-to/export.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from machine import describe, in_words, put_between
from smolmoe import upcycle
from smolmoe.surgery.export.run import export

ROOT = Path(__file__).resolve().parents[1]
QUANTS = ("f16", "q8_0")
MADE = {"experts": 4, "top_k": 2, "diversify": "drop", "drop_ratio": 0.5}
# name -> dense model of the folder, and what is asked of the upcycling
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mix_llama_6m", {}),
    "mixtral, tokenizer of pieces": ("stories260K", {}),
    "granitemoeshared": ("mix_llama_6m", {"target": "granitemoeshared", "shared": 352}),
    "glm4_moe": ("mix_llama_6m", {"target": "glm4_moe", "shared": "full"}),
    "qwen2_moe, renormalised": ("seed_qwen2_1m3", {"target": "qwen2_moe", "shared": "full"}),
    "generic": ("mix_llama_6m", {"target": "generic"}),
}
_ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 352}
# name -> model type and what is its own: classes for which there is no dense model here, with random weights
RANDOM: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_moe, not renormalised": (
        "qwen2_moe",
        {**_ROUTED, "norm_topk_prob": False, "shared_expert_intermediate_size": 352, "tie_word_embeddings": True},
    ),
    "qwen3_moe": ("qwen3_moe", {**_ROUTED, "norm_topk_prob": True, "head_dim": 32}),
    "olmoe": (
        "olmoe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 352,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "norm_topk_prob": False,
        },
    ),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("models", type=Path, help="folder of mix_llama_6m, stories260K and seed_qwen2_1m3")
    arguments.add_argument("--llama-cpp", type=Path, help="default: what SMOLMOE_LLAMA_CPP says")
    arguments.add_argument("--work", type=Path, default=ROOT / "runs" / "gguf")
    options = arguments.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [row(name, options) for name in (*TRAINED, *RANDOM)]
    machine = in_words(describe())
    text = f"{table(rows)}\n\nMeasured on: {machine}."
    print(text)
    put_between(ROOT / "docs" / "how-to" / "export.md", "gguf", text)


def row(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The measurements of one model, from an earlier run where there is one."""
    folder = options.work / name.replace(", ", "-").replace(" ", "-")
    found: dict[str, Any] = {"name": name, "random": name in RANDOM}
    for quant in QUANTS:
        beside = folder / f"{quant}.json"
        if not beside.is_file():
            moe = folder / "moe"
            if not (moe / "config.json").is_file():
                make(name, moe, options.models)
            export(moe, folder / quant, "gguf", llama_cpp=options.llama_cpp, quant=quant, overwrite=True)
        found[quant] = json.loads(beside.read_text(encoding="utf-8"))
    return found


def make(name: str, out: Path, models: Path) -> None:
    """An MoE whose experts differ."""
    if name in TRAINED:
        dense, request = TRAINED[name]
        upcycle(models / dense, out, **MADE, **request, verify="none")
        return
    model_type, own = RANDOM[name]
    tokenizer = AutoTokenizer.from_pretrained(models / "mix_llama_6m")
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    common = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.1}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**sizes, **common, **own})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line a model."""
    lines = [
        "| model | in llama.cpp | float32: max abs. difference / largest logit, flips | f16: KL, top-1, flips "
        "| q8_0: KL, top-1, flips | MB: float32, f16, q8_0 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for found in rows:
        exact = found["q8_0"]["measured"]["f32"]
        cells = [
            found["name"] + (" (random weights)" if found["random"] else ""),
            f"`{found['q8_0']['architecture']}`",
            f"{exact['sure_max_abs']:.1e} / {exact['max_logit']:.3g}, {exact['flips']:.2%}",
            *(
                f"{measured['kl']:.1e}, {measured['top1']:.1%}, {measured['flips']:.2%}"
                for measured in (found[quant]["measured"][quant] for quant in QUANTS)
            ),
            ", ".join(
                f"{size / 1e6:.1f}" for size in (exact["nbytes"], found["f16"]["nbytes"], found["q8_0"]["nbytes"])
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
