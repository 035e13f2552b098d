"""Training speed and memory beside the plain transformers Trainer, on the same model, interleaved.

    python benchmarks/train.py [--layers 30] [--steps 4] [--rounds 2]

The model is an MoE of SmolLM-135M's shape, 8 experts, top-2, random weights; sequences of 512. Each measurement is a
process of its own; the kinds take turns, so that a slow minute of the machine hits all of them:

- plain: transformers' Trainer, no router loss;
- plain + aux: the same with the class's own load-balancing loss;
- smolmoe: our engine's Trainer with load balance, z-loss and all routing metrics;
- smolmoe, bare: the same without terms; routers are recorded and counted all the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, record

KINDS = ("plain", "plain + aux", "smolmoe", "smolmoe, bare")
LENGTH, BATCH = 512, 2
PARTS = ("forward", "of it routers", "backward", "optimiser", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", choices=KINDS, help="measure this one here, and print it as JSON")
    parser.add_argument("--print", action="store_true", help="print only: leave README.md and results/ alone")
    arguments = parser.parse_args()
    if arguments.kind is not None:
        print(json.dumps(measure(arguments.kind, arguments.layers, arguments.steps)))
        return
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for number in range(arguments.rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            options = ["--layers", str(arguments.layers), "--steps", str(arguments.steps), "--kind", kind]
            done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
            found[kind].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"{kind}: {found[kind][-1]['seconds']}", file=sys.stderr, flush=True)
    text = table(found)
    print(text)
    if not arguments.print:
        record("train", {"machine": describe(), "layers": arguments.layers, "runs": found}, text)


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Medians over all timed steps, and their ratio to the plain Trainer's."""
    medians = {kind: statistics.median(s for run in runs for s in run["seconds"]) for kind, runs in found.items()}
    lines = [
        "| | tokens/s | step | of plain | " + " | ".join(PARTS) + " | peak memory |",
        "| --- | " + "--- | " * (4 + len(PARTS)),
    ]
    for kind, runs in found.items():
        parts = [statistics.median(p for run in runs for p in run["parts"][name]) for name in PARTS]
        lines.append(
            f"| {kind} | {LENGTH * BATCH / medians[kind]:.1f} | {medians[kind]:.2f} s "
            f"| {medians[kind] / medians['plain']:.3f} | "
            + " | ".join(f"{part:.2f} s" for part in parts)
            + f" | {max(run['memory'] for run in runs) / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def measure(kind: str, layers: int, steps: int) -> dict[str, Any]:
    """Seconds of each timed step and of its parts, after one that is not counted; peak memory of the process."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    from smolmoe.training.metrics import peak_memory

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=LENGTH,
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
        output_router_logits=kind == "plain + aux",
        router_aux_loss_coef=0.01,
    )
    model = MixtralForCausalLM(config)
    ids = torch.randint(0, 49152, (BATCH * (steps + 1), LENGTH))
    data = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        trainer, watch = (
            ours(model, data, folder, steps, kind) if "smolmoe" in kind else plain(model, data, folder, steps)
        )
        trainer.train()
    return {"seconds": watch.steps[1:], "parts": watch.parts(), "memory": peak_memory(torch.device("cpu"))}


class Watch:
    """Times the parts of a Trainer's steps from outside: nothing of it is changed."""

    def __init__(self, trainer: Any):
        from transformers import TrainerCallback

        watch = self
        self.steps: list[float] = []
        self.spent: list[dict[str, float]] = []

        class Callback(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                watch.begun = time.perf_counter()
                watch.spent.append(dict.fromkeys(PARTS, 0.0))

            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch.steps.append(time.perf_counter() - watch.begun)

        trainer.add_callback(Callback())
        if hasattr(trainer, "objective"):  # what ours adds, beside the hooks that record
            trainer.objective.terms = self.timed(trainer.objective.terms, "of it routers")
            trainer.flush = self.timed(trainer.flush, "of it routers")
        trainer.compute_loss = self.timed(trainer.compute_loss, "forward")
        trainer.accelerator.backward = self.timed(trainer.accelerator.backward, "backward")
        create = trainer.create_optimizer

        def create_optimizer(*args: Any, **kwargs: Any) -> Any:
            optimizer = create(*args, **kwargs)
            optimizer.step = self.timed(optimizer.step, "optimiser")
            return optimizer

        trainer.create_optimizer = create_optimizer

    def timed(self, call: Any, part: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            if self.spent:
                self.spent[-1][part] += time.perf_counter() - start
            return result

        run.__self__ = getattr(call, "__self__", None)  # type: ignore[attr-defined]  # schedulers look for it
        run.__func__ = getattr(call, "__func__", call)  # type: ignore[attr-defined]
        return run

    def parts(self) -> dict[str, list[float]]:
        for step, spent in zip(self.steps, self.spent, strict=True):
            spent["rest"] = step - spent["forward"] - spent["backward"] - spent["optimiser"]
        return {part: [spent[part] for spent in self.spent[1:]] for part in PARTS}


def arguments_of(folder: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": steps + 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "bf16": True,
        "use_cpu": True,
        "optim": "adamw_torch_fused",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "logging_steps": 10,
    }


def plain(model: Any, data: list[Any], folder: str, steps: int) -> tuple[Any, Watch]:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    trainer = Trainer(model=model, args=TrainingArguments(**arguments_of(folder, steps)), train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    return trainer, Watch(trainer)


def ours(model: Any, data: list[Any], folder: str, steps: int, kind: str) -> tuple[Any, Watch]:
    from transformers import TrainingArguments

    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.training.metrics import MetricsFile
    from smolmoe.training.objective import Objective
    from smolmoe.training.trainer import MoeTrainer

    recipe = parse(
        TrainRecipe,
        {
            "model": {"config": {}},
            "data": {"sources": [{"preset": "embedded"}], "length": LENGTH},
            "objective": {} if "bare" in kind else {"load_balance": 0.01, "z_loss": 0.001},
            "out": folder,
        },
    )
    trainer = MoeTrainer(
        recipe=recipe,
        objective=Objective(model, recipe.objective, recipe.routing),
        measure=lambda model, capture: None,
        measured_at=set(),
        model=model,
        args=TrainingArguments(**arguments_of(folder, steps), logging_nan_inf_filter=False),
        train_dataset=data,
    )
    trainer.metrics = MetricsFile(Path(folder) / "metrics.jsonl")
    return trainer, Watch(trainer)


if __name__ == "__main__":
    main()
