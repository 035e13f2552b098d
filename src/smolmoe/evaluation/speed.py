"""Speed and memory of a causal language model, by `generate` of transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.errors import RequestError
from smolmoe.evaluation.memory import PeakMemory
from smolmoe.results.bench import BatchSpeed, Times


@dataclass(frozen=True)
class Reading:
    """The measurement of one batch.

    Attributes:
        first_token: seconds from the prompts to their first tokens.
        tokens: seconds of each further step of the whole batch.
        held_bytes, peak_bytes: before it, and at its peak.
    """

    first_token: float
    tokens: tuple[float, ...]
    held_bytes: int
    peak_bytes: int


def read_speed(
    model: Any,
    *,
    batch_size: int = 1,
    prompt_tokens: int = 128,
    new_tokens: int = 16,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    options: dict[str, Any] | None = None,
) -> Reading:
    """Generate greedily from random prompts, always the requested number of tokens.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        new_tokens: of each prompt, at least 2.
        clock: returns the time in seconds.
        options: further settings of `generate`, such as `cache_implementation`.

    Raises:
        RequestError: a value out of its range, or the memory of a GPU is too small.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    check_speed(model.config, batch_size, prompt_tokens, new_tokens)
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (batch_size, prompt_tokens), generator=generator).to(model.device)
    asked = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **(options or {}))
    settings, model.generation_config = model.generation_config, GenerationConfig()
    memory = PeakMemory(model.device)
    watch = _Watch(clock, model.device)
    try:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=asked,
            stopping_criteria=StoppingCriteriaList([watch]),
        )
    except torch.OutOfMemoryError as error:
        raise RequestError(
            "it does not fit into the device's memory.", field="batch_sizes", value=batch_size, fix="Leave it out."
        ) from error
    finally:
        model.generation_config = settings
    gaps = [later - earlier for earlier, later in zip(watch.times, watch.times[1:], strict=False)]
    return Reading(gaps[0], tuple(gaps[1:]), memory.held, memory.peak())


class _Watch:
    """A stopping criterion that records the time of every token and never stops."""

    def __init__(self, clock: Callable[[], float], device: torch.device):
        self._clock, self._device = clock, device
        self.times = [self._now()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(self._now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


def summarise(batch_size: int, prompt_tokens: int, readings: Sequence[Reading]) -> BatchSpeed:
    """The summary of the readings of one batch size."""
    first = times([reading.first_token for reading in readings])
    token = times([seconds for reading in readings for seconds in reading.tokens])
    peak = max(readings, key=lambda reading: reading.peak_bytes - reading.held_bytes)
    return BatchSpeed(
        batch_size,
        prompt_tokens,
        first,
        token,
        batch_size * prompt_tokens / first.median,
        batch_size / token.median,
        max(reading.peak_bytes for reading in readings),
        (peak.peak_bytes - peak.held_bytes) // batch_size,
    )


def times(seconds: Sequence[float]) -> Times:
    ordered = sorted(seconds)
    return Times(statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))])


def check_speed(config: Any, batch_size: int, prompt_tokens: int, new_tokens: int) -> None:
    """Raise RequestError for a value out of its range, or more tokens than the model has positions."""
    least = {"batch_sizes": (batch_size, 1), "prompt_tokens": (prompt_tokens, 1), "new_tokens": (new_tokens, 2)}
    for field, (value, smallest) in least.items():
        if value < smallest:
            raise RequestError("out of range.", field=field, value=value, fix=f"Use at least {smallest}.")
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room is not None and prompt_tokens + new_tokens > room:
        raise RequestError(
            f"with {new_tokens} new tokens it exceeds the model's {room} positions.",
            field="prompt_tokens",
            value=prompt_tokens,
            fix=f"Use at most {room - new_tokens}." if room > new_tokens else "Use fewer of both.",
        )
