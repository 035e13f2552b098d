"""The cost of a training run before it starts: parameters, memory, tokens, FLOPs, time."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from smolmoe.core.devices import kind as kind_of
from smolmoe.core.devices import pick_device
from smolmoe.data.sources import look_at
from smolmoe.evaluation.held_out import windows_at_once
from smolmoe.moe.kernels.linear_cross_entropy import AT_ONCE
from smolmoe.moe.loading import Skeleton, causal_lm_class
from smolmoe.moe.size import ModelSize, size_of
from smolmoe.recipe import AlignRecipe, TrainRecipe
from smolmoe.recipe.schedule import Schedule, schedule_of
from smolmoe.training.arguments import DEFAULTS, check_trainer, precision
from smolmoe.training.distillation import open_distillation
from smolmoe.training.distributed import world_size
from smolmoe.training.fit import check_fits
from smolmoe.training.models import (
    check_fit,
    find_tokenizer,
    granularity_of,
    model_folder,
    new_config,
    parent_provenance,
    set_implementations,
)
from smolmoe.training.optim import router_names

# A training step of a small model reaches this share of the speed of large matrix products, on CPUs and GPUs.
EFFICIENCY = 0.3
# Of a parameter: weight, gradient, optimiser state, in fp32.
STATE_BYTES = {"adamw": 16, "adafactor": 8, "sgd": 8, "muon": 12}
WEIGHT_BYTES = 4  # a frozen parameter, in fp32
ACTIVATION_BYTES = 100  # per token, layer and unit of hidden size, kept for the backward pass
LOGIT_BYTES = 12  # per token and vocabulary entry: logits, their fp32 copy, their gradient
PROCESS_BYTES = 450_000_000  # of Python, torch and transformers; not on a GPU


@dataclass(frozen=True)
class Estimate:
    """The approximate cost of a run: memory within a factor of two, time within three.

    Attributes:
        size: of the model.
        steps, tokens, flops: of the run.
        memory_bytes: peak memory of one process.
        seconds: on this machine, if all processes are like this one.
        findings: the doctor's findings on its routers.
        out: the run's folder, if it is known.
    """

    size: ModelSize
    steps: int
    tokens: int
    flops: float
    memory_bytes: int
    seconds: float
    findings: tuple[Any, ...] = ()
    out: Path | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "out"}


def cost_of(
    model: Any,
    *,
    steps: int,
    blocks_a_step: int,
    micro_batch: int,
    length: int,
    optimizer: str,
    device: str,
    bf16: bool,
    whole_logits: bool,
    trained: int | None = None,
    top_k: Schedule | None = None,
) -> Estimate:
    """The cost of a run of a model, which may be on the meta device.

    Args:
        blocks_a_step: sequences of an optimiser step, over all processes and accumulated batches.
        micro_batch: sequences of one batch of one process.
        optimizer: its name in transformers.
        whole_logits: whether a batch's logits are all in memory; else at most those of `linear_cross_entropy`.
        trained: parameters with a gradient and an optimiser state (default: all).
        top_k: experts per token by step (default: the model's K).
    """
    size = size_of(model)
    config = model.config.get_text_config()
    tokens = steps * blocks_a_step * length
    flops = training_flops(model, steps, blocks_a_step, length, top_k)
    kind = next((name for name in STATE_BYTES if optimizer.startswith(name)), "adamw")
    sizes = (size.layers, config.hidden_size, config.vocab_size)
    passes = pass_bytes(*sizes, batch=micro_batch, length=length, whole_logits=whole_logits)
    trained = size.total if trained is None else trained
    state = STATE_BYTES[kind] * trained + WEIGHT_BYTES * (size.total - trained)
    process = 0 if kind_of(device) == "cuda" else PROCESS_BYTES
    memory = state + process + passes
    return Estimate(size, steps, tokens, flops, int(memory), flops / (EFFICIENCY * product_rate(device, bf16)))


def pass_bytes(
    layers: int, hidden: int, vocabulary: int, *, batch: int, length: int, whole_logits: bool = False
) -> int:
    """Bytes of a training pass over `batch` blocks of `length`, or of a measurement if that takes more."""
    logits = batch * length * vocabulary
    training = batch * length * layers * hidden * ACTIVATION_BYTES
    training += (logits if whole_logits else min(logits, AT_ONCE)) * LOGIT_BYTES
    measuring = windows_at_once(length, vocabulary) * length * vocabulary * LOGIT_BYTES
    return max(training, measuring)


@cache  # all stages of a pipeline are estimated with one value
def product_rate(device: str, bf16: bool, seconds: float = 0.2) -> float:
    """FLOP/s of large matrix products, measured for a fraction of a second."""
    n = 4096 if kind_of(device) == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    (a @ b).sum().item()
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        (a @ b)[0, 0].item()
        done += 1
    return 2.0 * n**3 * done / spent


def blocks_a_step(recipe: TrainRecipe) -> int:
    """Sequences of one optimiser step, over all processes and accumulated batches."""
    trainer = {**DEFAULTS, **recipe.trainer}
    accumulated = int(trainer.get("gradient_accumulation_steps", 1))
    return int(trainer["per_device_train_batch_size"]) * accumulated * world_size()


def estimate(recipe: TrainRecipe) -> Estimate:
    """The cost of a run, from configs and file headers: nothing is trained, no weight is read.

    Raises:
        SmolmoeError: as `train`, for problems that are known before training. The number of steps must be given.
    """
    check_trainer(recipe)
    open_distillation(recipe)
    for source in (*recipe.data.sources, *recipe.data.validation):
        look_at(source)
    trainer = {**DEFAULTS, **recipe.trainer}
    device = pick_device(recipe.device)
    model, folder = skeleton(recipe), model_folder(recipe.model)
    check_fits(recipe, model, granularity_of(parent_provenance(folder)))
    set_implementations(model, recipe.model, device)
    return cost_of(
        model,
        steps=int(trainer.get("max_steps", 0)),
        blocks_a_step=blocks_a_step(recipe),
        micro_batch=int(trainer["per_device_train_batch_size"]),
        length=recipe.data.length,
        optimizer=str(trainer["optim"]),
        device=device,
        bf16=bool(trainer.get("bf16", precision(device, trainer)["bf16"])),
        trained=_trained(model, recipe.trainable),
        top_k=top_k_of(recipe),
        whole_logits=bool(recipe.distill or recipe.parallel == "fsdp" or trainer.get("label_smoothing_factor")),
    )


def training_flops(model: Any, steps: int, blocks_a_step: int, length: int, top_k: Schedule | None = None) -> float:
    """FLOPs of so many optimiser steps, see `ModelSize.flops_per_token`.

    Args:
        top_k: experts per token by step (default: the model's K).
    """
    begun = 0 if top_k is None else min(steps, top_k.settled)
    experts = Counter(round(top_k.at(step)) for step in range(begun)) if top_k is not None else Counter()
    per_token = sum(count * size_of(model, k).flops_per_token(length) for k, count in experts.items())
    per_token += (steps - begun) * size_of(model).flops_per_token(length)
    return per_token * blocks_a_step * length


def top_k_of(recipe: TrainRecipe | AlignRecipe) -> Schedule | None:
    """The recipe's number of experts per token by step; None if it is always the model's K."""
    given = recipe.routing.top_k
    return None if given is None else schedule_of(given)


def _trained(model: Any, trainable: str) -> int | None:
    if trainable == "all":
        return None
    names = router_names(model)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)


def steps_for_flops(recipe: TrainRecipe, flops: float) -> int:
    """The number of steps of this run that take so many FLOPs."""
    model, blocks, length, top_k = skeleton(recipe), blocks_a_step(recipe), recipe.data.length, top_k_of(recipe)
    a_step = training_flops(model, 1, blocks, length)
    begun = 0 if top_k is None else top_k.settled  # steps with another number of experts
    more = training_flops(model, begun, blocks, length, top_k) - begun * a_step
    return max(1, round((flops - more) / a_step))


def skeleton(recipe: TrainRecipe) -> Any:
    """The recipe's model without its weights."""
    folder = model_folder(recipe.model)
    if folder is not None:
        return Skeleton(folder).model
    tokenizer = range(recipe.tokenizer) if isinstance(recipe.tokenizer, int) else find_tokenizer(recipe, None)
    config = new_config(recipe.model, tokenizer, recipe.data.length)
    check_fit(config.get_text_config(), tokenizer, recipe.data.length)
    with init_empty_weights(include_buffers=False):
        return causal_lm_class(config)._from_config(config)
