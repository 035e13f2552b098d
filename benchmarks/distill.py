"""What a teacher's cached targets cost a training step, beside cross-entropy alone.

    python benchmarks/distill.py [--vocabulary 6144 49152] [--steps 20]

A Mixtral of 4 layers, hidden 256, FFN 512, 4 experts, top-2, random weights, in our engine with a load-balancing
term; 2 sequences of 256 a step. A small model is the worst case: the more a token costs in the layers, the less its
losses weigh. Blocks and targets are read from disk, in the loader, and are part of a step. The four trainings take
turns in one process, step by step, so that a slow moment of the machine hits all of them; the processor's time is
compared, which other programs touch less, and the clock's is shown beside it. One thread.

- text: cross-entropy alone;
- top-20: the 20 largest and the tail;
- 50 draws: 12 different tokens a row on average, as arXiv 2503.16870 reports of real text;
- top-20, T = 2: a second log-softmax of all logits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import describe, record
from train import arguments_of

KINDS = ("text", "top-20", "50 draws", "top-20, T = 2")
LENGTH, SEQUENCES = 256, 2
WARM_UP = 2  # steps that are not counted

Steps = dict[str, list[tuple[float, float]]]  # seconds of each step: the processor's, the clock's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[6144, 49152])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--print", action="store_true", help="print only: leave README.md and results/ alone")
    arguments = parser.parse_args()
    found: dict[str, Steps] = {}
    for vocabulary in arguments.vocabulary:
        found[str(vocabulary)] = measure(vocabulary, arguments.steps)
        print(f"{vocabulary}: {found[str(vocabulary)]}", file=sys.stderr, flush=True)
    text = table(found)
    print(text)
    if not arguments.print:
        record("distill", {"machine": describe(), "steps": found}, text)


def table(found: dict[str, Steps]) -> str:
    """Medians over the counted steps, and the median of each step's ratio to the one without a teacher."""
    lines = ["| vocabulary | | processor | clock | of text alone |", "| --- | --- | --- | --- | --- |"]
    over = []
    for vocabulary, steps in found.items():
        for kind, taken in steps.items():
            processor, clock = (statistics.median(seconds) for seconds in zip(*taken, strict=True))
            ratio = statistics.median(a[0] / b[0] for a, b in zip(taken, steps["text"], strict=True))
            lines.append(f"| {int(vocabulary):,} | {kind} | {processor:.3f} s | {clock:.3f} s | {ratio:.3f} |")
            over += [ratio] if kind in ("top-20", "50 draws") else []
    most = f"- at most 10% over cross-entropy alone at T = 1: {max(over) - 1:+.1%} at most"
    return "\n".join([*lines, "", f"{most}: {'met' if max(over) <= 1.1 else 'missed'}"])


def measure(vocabulary: int, steps: int) -> Steps:
    """All kinds, in threads of which one goes at a time, each a step."""
    import torch

    torch.set_num_threads(1)
    turns = Turns(KINDS)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: trainer_of(kind, vocabulary, steps + WARM_UP, Path(folder) / kind) for kind in KINDS}
        for kind, trainer in trainers.items():
            turns.watch(kind, trainer)
        threads = [threading.Thread(target=turns.run, args=(kind, trainers[kind])) for kind in KINDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {kind: taken[WARM_UP:] for kind, taken in turns.taken.items()}


class Turns:
    """Lets one of several trainings go at a time: from the end of a step to the end of the next, loader included."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.doors = {name: threading.Semaphore(int(number == 0)) for number, name in enumerate(names)}
        self.taken: Steps = {name: [] for name in names}

    def run(self, name: str, trainer: Any) -> None:
        self._enter(name)
        trainer.train()
        self._leave(name)

    def watch(self, name: str, trainer: Any) -> None:
        from transformers import TrainerCallback

        turns = self

        class Callback(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                spent = (time.process_time() - turns.begun[0], time.perf_counter() - turns.begun[1])
                turns.taken[name].append(spent)
                turns._leave(name)
                turns._enter(name)

        trainer.add_callback(Callback())

    def _enter(self, name: str) -> None:
        self.doors[name].acquire()
        self.begun = time.process_time(), time.perf_counter()

    def _leave(self, name: str) -> None:
        self.doors[self.names[(self.names.index(name) + 1) % len(self.names)]].release()


def trainer_of(kind: str, vocabulary: int, steps: int, folder: Path) -> Any:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM, TrainingArguments

    from smolmoe.data.blocks import Blocks
    from smolmoe.data.targets import open_cache
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.arguments import precision
    from smolmoe.training.distillation import Distillation
    from smolmoe.training.metrics import MetricsFile
    from smolmoe.training.objective import Objective
    from smolmoe.training.trainer import MoeTrainer

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        num_local_experts=4,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    model = MixtralForCausalLM(config)
    folder.mkdir()
    store = text_of(vocabulary, steps * SEQUENCES * LENGTH)
    cache = None
    if kind != "text":
        write_cache(folder / "cache", store, kind, vocabulary)
        cache = open_cache(folder / "cache")
    values = {
        "model": {"config": {}},
        "data": {"sources": [{"preset": "embedded"}], "length": LENGTH},
        "objective": {"load_balance": 0.01},
        "out": str(folder),
    }
    recipe = parse(TrainRecipe, values)
    arguments = arguments_of(str(folder), steps - 1) | {"per_device_train_batch_size": SEQUENCES} | precision("cpu")
    trainer = MoeTrainer(
        recipe=recipe,
        objective=Objective(model, recipe.objective, recipe.routing),
        measure=lambda model, capture: None,
        measured_at=set(),
        distillation=None if cache is None else Distillation(cache, 0.5),
        model=model,
        args=TrainingArguments(**arguments, logging_nan_inf_filter=False),
        train_dataset=Blocks(store, count=steps * SEQUENCES, length=LENGTH, seed=0, targets=cache),
    )
    trainer.gradients_every = 0
    trainer.metrics = MetricsFile(folder / "metrics.jsonl")
    return trainer


def text_of(vocabulary: int, tokens: int) -> Any:
    """Random documents of 300 tokens."""
    import numpy as np

    from smolmoe.data.tokens import TokenStore

    count = -(-tokens // 300)
    ids = np.random.default_rng(0).integers(1, vocabulary, count * 300).astype("<u2")
    none = np.zeros(count, dtype=np.int16)
    return TokenStore(ids, np.arange(count + 1, dtype=np.int64) * 300, none, none)


def write_cache(folder: Path, store: Any, kind: str, vocabulary: int) -> None:
    """A cache of random targets of the store's documents, in one shard."""
    import numpy as np

    from smolmoe.data.targets import digest_documents, file_sizes, pack_ids, text_hash

    rng, tokens = np.random.default_rng(1), store.tokens
    digests = digest_documents(store.documents())
    arrays = {"documents": digests, "starts": store.starts, "rest": np.full(tokens, -2.0, dtype=np.float16)}
    sampled = kind == "50 draws"
    size, width = (50, 20) if sampled else (20, 20)
    if sampled:
        counts = rng.integers(4, width + 1, tokens)
        ids = rng.integers(0, vocabulary, counts.sum())
        arrays |= {"values": np.full(len(ids), 4, dtype="u1"), "ends": np.cumsum(counts).astype("<u4")}
    else:
        ids = rng.integers(0, vocabulary, (tokens, size))
        arrays["values"] = np.full((tokens, size), -3.0, dtype=np.float16)
    arrays["ids"] = pack_ids(ids, vocabulary)
    shard = folder / "shard-00000"
    shard.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(shard / f"{name}.npy", array)
    about = {
        "format": 1,
        "kind": "sampled" if sampled else "top_k",
        "size": size,
        "width": width,
        "temperature": 2.0 if "T = 2" in kind else 1.0,
        "vocabulary": vocabulary,
        "text": text_hash(digests),
        "teacher": {},
        "shards": [{"name": shard.name, "tokens": tokens, "files": file_sizes(shard)}],
    }
    (folder / "cache.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()
