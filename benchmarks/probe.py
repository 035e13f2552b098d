"""What the probe's streaming statistics cost beside a plain forward pass of the same batches.

    python benchmarks/probe.py MOE TAGGED.jsonl [--documents 40] [--rounds 5] [--device cpu]

Interleaved: in each round every batch goes through the model plain, through its layers alone (no logits, which the
probe does not read either), and through the probe. Processor time on a CPU, so that what else runs there counts
for little; wall time elsewhere. Loading, reading and tokenising are in none of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from smolmoe.probing.counting import RoutingCounts, forward
from smolmoe.probing.setup import open_subject
from smolmoe.recipe.probe import ProbeOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()

    subject = open_subject(asked.moe, ProbeOptions(), asked.device)
    documents = list(islice(subject.documents(str(asked.data), None), asked.documents))
    types = subject.types.to(asked.device)
    batches = list(subject.windows.of(documents, asked.device))

    def plain() -> None:
        for batch in batches:
            with torch.inference_mode():
                subject.model(input_ids=batch.inputs, use_cache=False)

    def layers() -> None:
        for batch in batches:
            with torch.inference_mode():
                forward(subject.model, batch.inputs)

    def probed() -> None:
        counts = RoutingCounts(len(subject.layers), subject.runner.experts, types)
        cut = subject.windows.of(documents, asked.device)
        counts.add(documents, ((batch, subject.runner.chosen(batch)) for batch in cut))

    ways: dict[str, Callable[[], None]] = {"plain forward": plain, "layers alone": layers, "probe": probed}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.rounds + 1):
        for name, way in ways.items():
            seconds[name].append(_timed(way, asked.device))
    tokens = sum(len(document.ids) for document in documents)
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up
    print(f"{tokens} tokens in {len(batches)} batches, {asked.rounds} rounds, {asked.device}")
    for name, median in medians.items():
        relative = median / medians["plain forward"]
        print(f"  {name:<14} {median:8.3f} s  {relative:6.3f} x  {tokens / median:10,.0f} tokens/s")


def _timed(way: Callable[[], None], device: str) -> float:
    is_cpu = device == "cpu"
    clock = time.process_time if is_cpu else time.monotonic
    started = clock()
    way()
    if not is_cpu:
        torch.accelerator.synchronize()
    return clock() - started


if __name__ == "__main__":
    main()
