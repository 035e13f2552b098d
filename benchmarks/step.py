"""A training step of an MoE in our engine, beside the plain Trainer of transformers and dense models of equal FLOPs.

    python benchmarks/step.py [--layers 30] [--sequences 4] [--rounds 2] [--steps 1] [--threads 2]
    python benchmarks/step.py --table

SmolLM-135M's shape (hidden 576, FFN 1536, 9 heads, 3 of them for keys and values, vocabulary 49,152, tied), 8 experts,
top-2, random weights; sequences of 512, all of them in one batch; weights in fp32 under bf16 autocast, fused AdamW with
the same numbers, gradients clipped at 1. A step is all of it: loading, forward, backward, clipping, optimiser, logging.

- eager, grouped_mm: the plain Trainer with transformers' experts implementations (batched_mm copies the weights of two
  experts for every token, which takes more memory than the machine has);
- smolmoe: our engine as it is without options, with a load-balancing loss and a z-loss, which the others do not have;
- dense, dense in our engine: the FFN of width 2 * 1536, of equal active FLOPs.

Each measurement is a process of its own, whose peak memory is the kernel's figure; its first step is not counted. The
contenders take turns, and those of the next round go in the reverse order. Runs are written to results/step.json as
they are done, those of the same commit and settings are not done again. The table goes to docs/reference/speed.md. At
one thread the processor's time is compared, which other programs touch less, at more the clock's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import HERE, describe, in_words, put_between
from processes import run

RESULTS = HERE / "results" / "step.json"
KINDS = ("eager", "grouped_mm", "smolmoe", "dense", "dense in our engine")
OURS = ("smolmoe", "dense in our engine")
LENGTH, VOCABULARY = 512, 49152
SETTINGS = ("layers", "sequences", "steps", "threads")
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sequences", type=int, default=4, help="of a step")
    parser.add_argument("--steps", type=int, default=1, help="to count, of each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", choices=KINDS, help="measure this one here, and print it as JSON")
    parser.add_argument("--table", action="store_true", help="measure nothing: write what is shown")
    parser.add_argument("--print", action="store_true", help="print only: leave results/ and docs/ alone")
    parser.set_defaults(device="cpu")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        print(json.dumps(measure(arguments)))
        return
    found = json.loads(RESULTS.read_text()) if arguments.table else measure_all(arguments)
    text = table(found)
    print(text)
    if not arguments.print:
        where, settings = in_words(found["machine"]), in_words(found["settings"])
        put_between(
            HERE.parent / "docs" / "reference" / "speed.md",
            "step",
            f"{text}\n\nMeasured with: {settings}, on: {where}.",
        )


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    found = {
        "machine": describe(),
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "runs": {kind: {} for kind in KINDS},
    }
    if RESULTS.is_file() and not arguments.print:
        before = json.loads(RESULTS.read_text())
        if before["settings"] == found["settings"] and before["machine"]["commit"] == found["machine"]["commit"]:
            found = before
    for number in range(arguments.rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            if str(number) in found["runs"][kind]:
                continue
            found["runs"][kind][str(number)] = one(arguments, kind)
            print(f"round {number}, {kind}: {found['runs'][kind][str(number)]}", file=sys.stderr, flush=True)
            if not arguments.print:
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


def one(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Seconds of the counted steps by both clocks, and the peak memory, of a process."""
    options = [option for name in SETTINGS for option in (f"--{name}", str(getattr(arguments, name)))]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        threads = {"OMP_NUM_THREADS": str(arguments.threads)}
        done = run([sys.executable, __file__, *options, "--kind", kind], log, threads)
        said: dict[str, Any] = json.loads(log.read_text().strip().splitlines()[-1])
    return {**said, "memory": done.resident}


def table(found: dict[str, Any]) -> str:
    settings, runs = found["settings"], found["runs"]
    clock = "processor" if settings["threads"] == 1 else "seconds"
    steps = {kind: [seconds for done in runs[kind].values() for seconds in done[clock]] for kind in KINDS}
    times = {kind: statistics.median(seconds) for kind, seconds in steps.items()}
    memory = {kind: max(done["memory"] for done in runs[kind].values()) for kind in KINDS}
    tokens = settings["sequences"] * LENGTH
    lines = ["| | tokens/s | step | over smolmoe's | peak memory |", "| --- | --- | --- | --- | --- |"]
    for kind, taken in times.items():
        between = f"{min(steps[kind]):.2f} to {max(steps[kind]):.2f}"
        numbers = f"{tokens / taken:.1f} | {taken:.2f} s ({between}) | {taken / times['smolmoe']:.2f}"
        lines.append(f"| {kind} | {numbers} | {memory[kind] / 1e9:.2f} GB |")
    best = min(times["eager"], times["grouped_mm"])
    least = min(memory["eager"], memory["grouped_mm"])
    claims = [
        ("tokens/s over eager's", times["eager"] / times["smolmoe"], 1.5),
        ("tokens/s over the best stock implementation's", best / times["smolmoe"], 1.15),
    ]
    lines.append("")
    lines += [f"- {name}: {ratio:.2f} (at least {goal}: {_met(ratio >= goal)})" for name, ratio, goal in claims]
    for kind in ("dense", "dense in our engine"):
        ratio = times["smolmoe"] / times[kind]
        lines.append(f"- step time over {kind}'s: {ratio:.2f} (at most 1.15: {_met(ratio <= 1.15)})")
    share = memory["smolmoe"] / least
    lines.append(f"- peak memory over the lower of plain: {share:.2f} (below 1: {_met(share < 1)})")
    return "\n".join(lines)


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each step after the first, by the clock and by the processor."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = make_model(arguments.kind, arguments.layers)
    ids = torch.randint(0, VOCABULARY, (arguments.sequences * (arguments.steps + 1), LENGTH))
    data = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        make = ours if arguments.kind in OURS else plain
        trainer = make(model, data, arguments, folder)
        watch = Watch()
        trainer.add_callback(watch.callback())
        trainer.train()
    return {"seconds": watch.seconds[1:], "processor": watch.processor[1:]}


def make_model(kind: str, layers: int, *, shape: dict[str, Any] = SHAPE, width: int = 1536) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    if "dense" in kind:
        return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=layers, intermediate_size=2 * width))
    sizes = {"intermediate_size": width, "num_local_experts": 8, "num_experts_per_tok": 2}
    model = MixtralForCausalLM(MixtralConfig(**shape, num_hidden_layers=layers, **sizes))
    if kind not in OURS:
        model.set_experts_implementation(kind)
    return model


class Watch:
    """From the end of a step to the end of the next: loading and logging are part of it.

    Args:
        wait: called first, to wait for a device.
    """

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self._wait = wait
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self._begun = time.perf_counter(), time.process_time()

    def callback(self) -> Any:
        from transformers import TrainerCallback

        watch = self

        class Callback(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch._wait()
                now = time.perf_counter(), time.process_time()
                watch.seconds.append(now[0] - watch._begun[0])
                watch.processor.append(now[1] - watch._begun[1])
                watch._begun = now

        return Callback()


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What both Trainers are told."""
    return {
        "per_device_train_batch_size": arguments.sequences,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "bf16": True,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }


def plain(model: Any, data: list[Any], arguments: argparse.Namespace, folder: str) -> Any:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    steps = {"max_steps": arguments.steps + 1, "output_dir": folder, "use_cpu": arguments.device == "cpu"}
    trainer = Trainer(model=model, args=TrainingArguments(**settings_of(arguments), **steps), train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    return trainer


def ours(model: Any, data: list[Any], arguments: argparse.Namespace, folder: str) -> Any:
    from smolmoe.moe.kernels.register import set_experts
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.arguments import training_arguments
    from smolmoe.training.metrics import MetricsFile
    from smolmoe.training.objective import Objective
    from smolmoe.training.trainer import MoeTrainer

    recipe = parse(
        TrainRecipe,
        {
            "model": {"config": {}},
            "data": {"sources": [{"preset": "embedded"}], "length": LENGTH},
            "objective": {"load_balance": 0.01, "z_loss": 0.001} if arguments.kind == "smolmoe" else {},
            "trainer": settings_of(arguments),
            "device": arguments.device,
            "out": folder,
        },
    )
    set_experts(model)
    steps = arguments.steps + 1
    trainer = MoeTrainer(
        recipe=recipe,
        objective=Objective(model, recipe.objective, recipe.routing),
        measure=lambda model, capture: None,
        measured_at=set(),
        model=model,
        args=training_arguments(recipe, steps=steps, every=steps + 1),
        train_dataset=data,
    )
    trainer.metrics = MetricsFile(Path(folder) / "metrics.jsonl")
    return trainer


if __name__ == "__main__":
    main()
