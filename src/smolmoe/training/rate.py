"""Training speed of a model on this machine, measured for a few seconds."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from smolmoe.core.devices import kind
from smolmoe.moe.loading import load_model

SECONDS = 6.0  # at most, if two passes take no longer
PASSES = 8
SAMPLE = 4_000_000  # parameters of an optimiser step


@dataclass(frozen=True)
class Rate:
    """Speed of training steps.

    Attributes:
        tokens: per second, forward and backward.
        parameters: per second, updated by AdamW.
    """

    tokens: float
    parameters: float


def measure_rate(
    folder: Path, *, length: int, batch: int, device: str, bf16: bool, attention: str | None = None
) -> Rate:
    """Time forward and backward passes of a dense model on random tokens, and updates of AdamW.

    The fastest pass counts: slower ones show what else the machine was doing.

    Args:
        folder: of the model.
        length: tokens of a sequence.
        batch: sequences of a pass.
        bf16: whether to compute under bf16 autocast; weights are in float32.
    """
    model = load_model(folder, device=device, own=True)
    if attention is not None:
        model.set_attn_implementation(attention)
    model.train()
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (batch, length), device=device)
    begun, fastest, passes = time.perf_counter(), float("inf"), 0
    while passes < 2 or (passes < PASSES and time.perf_counter() - begun + fastest < SECONDS):
        start = time.perf_counter()
        with torch.autocast(kind(device), torch.bfloat16) if bf16 else nullcontext():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        _wait(device)
        fastest, passes = min(fastest, time.perf_counter() - start), passes + 1
        model.zero_grad(set_to_none=True)
    del model
    return Rate(batch * length / fastest, SAMPLE / _update_seconds(device))


def _update_seconds(device: str) -> float:
    weight = torch.zeros(SAMPLE, device=device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=True)
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        optimizer.step()
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _wait(device: str) -> None:
    if kind(device) == "cuda":
        torch.cuda.synchronize(device)
