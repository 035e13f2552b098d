"""What the project's commands do to a real model, SmolLM2-135M-Instruct, on text that it has not been trained on.

    python benchmarks/real.py experts --model DIR --text DIR --out DIR     # text: train.jsonl, validation.jsonl
    python benchmarks/real.py grammar --model DIR --rows FILE [--rows ...] --out DIR
    python benchmarks/real.py distill --model DIR --text DIR --out DIR
    python benchmarks/real.py extract --model DIR --text DIR --out DIR     # after experts
    python benchmarks/real.py gguf --out DIR --python PYTHON               # after experts; a Python with llama.cpp
    python benchmarks/real.py exact --model DIR --text DIR --out DIR
    python benchmarks/real.py table

Each part is a folder of --out and can be interrupted: finished stages are skipped. It writes its figures to
benchmarks/results/real/PART.json; `table` puts all of them into docs/reference/results.md. One thread; 12 GB of memory.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

PARTS = ("exact", "experts", "grammar", "distill", "extract", "gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "table"))
    parser.add_argument("--model", type=Path, help="folder of the dense model")
    parser.add_argument("--text", type=Path, help="folder with train.jsonl and validation.jsonl, text and domain a row")
    parser.add_argument("--rows", type=Path, action="append", default=[], help="file of grammar corrections")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--python", type=Path, help="Python that has llama.cpp (gguf)")
    parser.add_argument("--arms", nargs="+", help="only these arms, requests or stages")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.part == "table":
        import_module("real_table").write_results()
        return
    import torch

    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    import_module(f"real_{arguments.part}").run(arguments)


if __name__ == "__main__":
    main()
