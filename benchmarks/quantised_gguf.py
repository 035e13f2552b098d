"""A real MoE as GGUF files of every type that llama.cpp quantises to: size, KL, top-1 agreement and one answer each.

    python benchmarks/quantised_gguf.py MOE TEXT --llama-cpp PATH --work runs/quantised

MOE is an upcycled chat model, TEXT the text of the importance matrix. Continues where it was stopped, prints the
table, and writes it between the markers in docs/how-to/export.md.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
from pathlib import Path
from typing import Any

from machine import describe, in_words, put_between
from smolmoe.moe.loading import load_tokenizer
from smolmoe.surgery.export.gguf.checks import Reference
from smolmoe.surgery.export.gguf.converter import convert, find_converter
from smolmoe.surgery.export.gguf.placement import place_experts
from smolmoe.surgery.export.gguf.quantise import K_QUANTS, find_program, importance_of, quantise
from smolmoe.surgery.export.gguf.run import CONVERTED
from smolmoe.surgery.export.gguf.vocabulary import vocabulary_of

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "What is the capital of France?"
VRAM, CONTEXT = 10**9, 2048
WITH_IMPORTANCE = ("q6_k", "q4_k_m")  # the largest K type and the smallest


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("moe", type=Path)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--llama-cpp", type=Path, help="default: what SMOLMOE_LLAMA_CPP says")
    arguments.add_argument("--work", type=Path, default=ROOT / "runs" / "quantised")
    options = arguments.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = measure_all(options)
    text = f"{table(rows)}\n\nMeasured on {datetime.date.today()}: {in_words(describe())}, llama-cpp-python 0.3.36."
    print(text)
    put_between(ROOT / "docs" / "how-to" / "export.md", "quantised", text)


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per file. What `smolmoe export` does for each file is done once: the reference and the float32 file."""
    plain = {quant: options.work / f"{quant}.gguf" for quant in CONVERTED}
    if not all(path.is_file() for path in plain.values()):
        vocabulary = vocabulary_of(load_tokenizer(options.moe))
        convert(find_converter(options.llama_cpp), options.moe, plain, vocabulary)
    reference = functools.cache(lambda: Reference.of(options.moe))
    weights = functools.cache(
        lambda: importance_of(find_program(options.llama_cpp), plain["f32"], options.text, 512)[1]
    )
    rows = []
    for name in (*CONVERTED, *K_QUANTS, *(f"{quant}, importance matrix" for quant in WITH_IMPORTANCE)):
        kept = options.work / f"{name}.json"
        if not kept.is_file():
            quant, with_importance = name.split(",")[0], "," in name
            out = options.work / f"{quant}.gguf"
            if quant in K_QUANTS:
                quantise(plain["f32"], out, quant, weights() if with_importance else None)
            found = reference().measure(out, exact=quant == "f32").to_json()
            placement = place_experts(out, VRAM, CONTEXT).to_json()
            row = {"name": name, "measured": found, "placement": placement, "answer": answer(out)}
            kept.write_text(json.dumps(row, indent=1), encoding="utf-8")
            print(json.dumps(row), flush=True)
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
    return rows


def answer(file: Path) -> str:
    """The greedy answer of a file's chat template to the prompt."""
    from llama_cpp import Llama

    model: Any = Llama(str(file), n_ctx=256, n_threads=1, verbose=False)
    messages = [{"role": "user", "content": PROMPT}]
    reply = model.create_chat_completion(messages, max_tokens=32, temperature=0)
    return " ".join(reply["choices"][0]["message"]["content"].split())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line per file."""
    head = (
        "type",
        "MB",
        "KL from transformers, nats",
        "top-1 agreement",
        "flips",
        "`--vram 1GB --context 2048`",
        "answer",
    )
    lines = [head, ("---",) * len(head)]
    for found in rows:
        measured = found["measured"]
        lines.append(
            (
                found["name"],
                f"{measured['nbytes'] / 1e6:,.0f}",
                f"{max(measured['kl'], 0):.1e}",
                f"{measured['top1']:.1%}",
                f"{measured['flips']:.2%}",
                f"`-ncmoe {found['placement']['n_cpu_moe']}`",
                found["answer"],
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
