"""Train a causal language model on blocks of tokens: thin over the transformers Trainer."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

LEAST = 1 / 3  # of the wanted steps: below that the model has learned too little to show anything


@dataclass(frozen=True)
class FitSettings:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        batch: blocks a step.
        learning_rate: the peak.
        warmup: steps of linear warm-up.
        final: the learning rate at the end as a share of the peak, reached along a cosine.
        evaluations: held-out measurements on the way, evenly spaced between the first step and the last.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 2e-3
    warmup: int = 20
    final: float = 0.1
    weight_decay: float = 0.1
    beta2: float = 0.95
    gradient_norm: float = 1.0
    evaluations: int = 4
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """A loss in nats a token after `step` steps: `train` (of that step's batch) or `held_out`.

    `seconds` is the time spent training until then, without the held-out measurements.
    """

    kind: str
    step: int
    loss: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit(
    model: Any,
    blocks: torch.Tensor,
    settings: FitSettings,
    *,
    evaluate: Callable[[Any], float] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[Point]:
    """Train `model` in place on `blocks` [N, S] in their order, from the first again where they do not suffice.

    Args:
        evaluate: gives the held-out loss of a model.
        on_step: is told of every step done, and of its loss.

    Returns:
        The loss of every step, and the held-out losses. All are of language modelling alone: a router's auxiliary loss
        is trained on but not in them.
    """
    watch = _Watch(settings, evaluate, on_step)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model,
            args=_arguments(folder, settings),
            train_dataset=[{"input_ids": block, "labels": block} for block in blocks],
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        watch.losses = trainer.losses
        trainer.train()
    return watch.points


def affordable_steps(model: Any, blocks: torch.Tensor, settings: FitSettings, seconds: float) -> int:
    """How many of the wanted steps, a third at least, fit into `seconds` here, by trying a few on a copy of `model`.

    A schedule must know its length beforehand: stopping the clock in the middle of one would leave the learning rate
    high, and the model worse than a shorter training does.
    """
    tried = fit(copy.deepcopy(model), blocks, replace(settings, steps=8, warmup=1))
    # The fastest step tells what the machine can do; the others, what else it was doing at the time.
    fastest = min(b.seconds - a.seconds for a, b in pairwise(tried))
    return max(math.ceil(settings.steps * LEAST), min(settings.steps, int(seconds / fastest)))


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bf16 matrices in hardware, faster than fp32 ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _arguments(folder: str, settings: FitSettings) -> TrainingArguments:
    bf16 = bf16_is_fast()
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final},
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.gradient_norm,
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=bf16 and not torch.cuda.is_available(),
        seed=settings.seed,
        train_sampling_strategy="sequential",  # compared models see the same batches in the same order
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class _Trainer(Trainer):
    """Keeps the language-modelling loss of each step apart from the auxiliary loss that is added to it."""

    losses: list[torch.Tensor]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.losses = []

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        auxiliary = outputs.get("aux_loss")
        pure = loss.detach()
        if auxiliary is not None:
            pure = pure - self.model.config.router_aux_loss_coef * auxiliary.detach()
        self.losses.append(pure)
        return (loss, outputs) if return_outputs else loss


class _Watch(TrainerCallback):
    """Draws the curve."""

    def __init__(
        self,
        settings: FitSettings,
        evaluate: Callable[[Any], float] | None,
        on_step: Callable[[int, float], None] | None,
    ) -> None:
        self.evaluate = evaluate
        self.on_step = on_step
        self.losses: list[torch.Tensor] = []
        self.points: list[Point] = []
        self.held_out_at = {
            round(settings.steps * (i + 1) / (settings.evaluations + 1)) for i in range(settings.evaluations)
        }
        self.seconds = 0.0
        self.resumed = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.resumed = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self.resumed
        loss = self.losses[-1].item()
        self.points.append(Point("train", state.global_step, loss, self.seconds))
        if self.on_step is not None:
            self.on_step(state.global_step, loss)
        if self.evaluate is not None and state.global_step in self.held_out_at:
            held_out = self.evaluate(kwargs["model"])
            self.points.append(Point("held_out", state.global_step, held_out, self.seconds))
        self.resumed = time.perf_counter()
