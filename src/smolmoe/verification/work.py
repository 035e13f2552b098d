"""The work of a verification: how long it will take, how far it is, and how long its parts took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.core import units
from smolmoe.core.model_config import expert_counts
from smolmoe.core.progress import Progress
from smolmoe.moe.loading import Skeleton
from smolmoe.moe.structure import find_layers
from smolmoe.results.verification import PartSeconds
from smolmoe.verification.measure import expert_names
from smolmoe.verification.scope import Inputs

logger = logging.getLogger(__name__)

# What moving a parameter costs compared with computing: reading and casting it, sampling it, and streaming it from
# memory for a few tokens. Measured with SmolLM2-135M; they only serve the estimate and the weights of the progress.
READ_FLOPS, REDRAW_FLOPS, STREAM_FLOPS = 250, 100, 40
EFFICIENCY = 0.55  # of the speed of products alone, which the layers reach
OPENING = 1.5  # seconds: tokenizers, the sample, and what else does not depend on the model


@dataclass(frozen=True)
class Part:
    """A part of the work, in equal steps.

    Attributes:
        steps: decoder layers, or decoded tokens.
        flops: of one step, or what takes as long.
    """

    name: str
    steps: int
    flops: float


@dataclass(frozen=True)
class _Shape:
    """Numbers of parameters: of a decoder layer, of its FFN, and of those the part that a token uses."""

    layers: int
    layer: int
    ffn: int
    used_ffn: float

    @property
    def used(self) -> float:
        return self.layer - self.ffn + self.used_ffn

    @classmethod
    def of(cls, skeleton: Skeleton) -> _Shape:
        _, layers = find_layers(skeleton.model)
        experts = [skeleton.model.get_parameter(name).numel() for name in expert_names(skeleton.model)]
        number, top_k = expert_counts(skeleton.config.to_dict()) or (1, 1)
        layer = sum(parameter.numel() for parameter in layers.parameters()) // len(layers)
        ffn = sum(experts) // len(layers)
        return cls(len(layers), layer, ffn, ffn * min(1.0, top_k / max(1, number)))


def parts_of(dense: Skeleton, moe: Skeleton, inputs: Inputs, *, half: bool) -> list[Part]:
    """The parts in order, with their costs from the shapes of both models and the numbers of tokens."""
    a, b = _Shape.of(dense), _Shape.of(moe)
    tokens = sum(map(len, inputs.sequences))
    few = sum(map(len, inputs.few_sequences))
    probed = sum(len(inputs.sequences[index]) for index in inputs.probed)
    padded = len(inputs.few) * max(map(len, inputs.few_sequences)) * len(inputs.sides)
    rows = len(inputs.prompts)
    decoded = a.layer * a.layers, min(b.layer, b.used * max(1, rows)) * b.layers
    parts = [Part("dense model", a.layers, a.layer * (READ_FLOPS + 2 * (tokens + padded)))]
    if rows:
        parts.append(Part("dense model, decoding", inputs.new_tokens, decoded[0] * STREAM_FLOPS))
    if half:
        parts.append(Part("dense model, 16 bits", a.layers, a.layer * 2 * few))
    parts.append(Part("MoE", b.layers, b.layer * READ_FLOPS + 2 * (b.used * (tokens + padded) + b.used_ffn * probed)))
    if rows:
        parts.append(Part("MoE, decoding", inputs.new_tokens, decoded[1] * STREAM_FLOPS))
    if half:
        parts.append(Part("MoE, 16 bits", b.layers, b.used * 2 * few))
    parts.append(Part("control", b.layers, b.ffn * REDRAW_FLOPS + b.used * 2 * few))
    return parts


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> PartSeconds:
        return PartSeconds(round(time.monotonic() - self._wall, 2), round(time.process_time() - self._cpu, 2))


class Work:
    """The parts in progress.

    Attributes:
        seconds: of each part so far, in order.
    """

    def __init__(self, parts: Sequence[Part], report: Progress):
        least = min(part.flops for part in parts)
        self._weights = {part.name: max(1, round(part.flops / least)) for part in parts}
        self._parts = {part.name: part for part in parts}
        self._total = sum(part.steps * self._weights[part.name] for part in parts)
        self._done, self._report = 0, report
        self.seconds: dict[str, PartSeconds] = {}

    def announce(self, device: str) -> None:
        """Say how long it will take, from a measurement of this machine that takes milliseconds."""
        flops = sum(part.steps * part.flops for part in self._parts.values())
        logger.info(
            "Verification takes about %s.", units.duration(_rounded(OPENING + flops / (EFFICIENCY * _speed(device))))
        )
        self._report("verify", 0, self._total)

    @contextmanager
    def part(self, name: str) -> Iterator[Callable[[], None]]:
        """A part, timed: yields what is called after each of its steps."""
        clock, end = Clock(), self._done + self._parts[name].steps * self._weights[name]

        def step() -> None:
            self._done = min(self._done + self._weights[name], end)
            self._report("verify", self._done, self._total)

        yield step
        self._done = end
        self._report("verify", self._done, self._total)
        self.seconds[name] = clock.read()


def _speed(device: str) -> float:
    """FLOPs per second of products of the shape that an expert's are."""
    a, b = torch.randn(64, 1024, device=device), torch.randn(1024, 1024, device=device)
    for _ in range(2):  # the first calls prepare threads and kernels
        _synchronise(a @ b)
    started, rounds = time.perf_counter(), 8
    for _ in range(rounds):
        _synchronise(a @ b)
    return rounds * 2 * a.numel() * b.shape[1] / (time.perf_counter() - started)


def _synchronise(tensor: torch.Tensor) -> Any:
    return tensor[0, 0].item()


def _rounded(seconds: float) -> float:
    """A forecast with the digits that it deserves: 3, 15, 40."""
    step = 1 if seconds < 10 else 5 if seconds < 60 else 10
    return max(1, step * round(seconds / step))
