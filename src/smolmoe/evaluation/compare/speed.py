"""The speed of several models, measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from smolmoe.core.progress import Progress
from smolmoe.evaluation.compare.models import Contender
from smolmoe.evaluation.speed import Reading, read_speed, summarise
from smolmoe.inference.decoding import fast_decoding
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.loading import Skeleton, load_model
from smolmoe.results.comparison import Speed

PROMPT_TOKENS = 128
NEW_TOKENS = 16
TURNS = 3


def measure_speeds(contenders: Sequence[Contender], device: str, report: Progress) -> dict[str, Speed]:
    """The speed of each model's first checkpoint, one prompt at a time, in the stored dtype.

    They run as `smolmoe generate` runs them. All are in memory and take turns, so that a slow moment of the machine
    affects all of them.

    Raises:
        RequestError: a model has too few positions for a prompt and its answer.
    """
    room = min((one.positions for one in contenders if one.positions), default=PROMPT_TOKENS + NEW_TOKENS)
    prompt_tokens = max(1, min(PROMPT_TOKENS, room - NEW_TOKENS))
    running = {contender.name: _serving(contender, device) for contender in contenders}
    readings: dict[str, list[Reading]] = {name: [] for name in running}
    for turn in range(TURNS + 1):  # the first one warms up
        report("Measuring speed", turn, TURNS + 1)
        for name in list(running) if turn % 2 else reversed(running):
            model = running[name]
            with fast_decoding(model):
                reading = read_speed(model, batch_size=1, prompt_tokens=prompt_tokens, new_tokens=NEW_TOKENS)
            if turn:
                readings[name].append(reading)
    return {name: _speed(model, readings[name], prompt_tokens) for name, model in running.items()}


def _serving(contender: Contender, device: str) -> Any:
    folder = contender.checkpoints[0].folder
    model = load_model(folder, dtype=Skeleton(folder).stored_dtype(), device=device)
    set_experts(model)
    return model


def _speed(model: Any, readings: Sequence[Reading], prompt_tokens: int) -> Speed:
    found = summarise(1, prompt_tokens, readings)
    own = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    settings = {
        "batch_size": 1,
        "prompt_tokens": prompt_tokens,
        "new_tokens": NEW_TOKENS,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    return Speed(
        latency=found.first_token.median,
        prefill=found.prefill_tokens_per_second,
        decode=found.decode_tokens_per_second,
        memory=own + found.sample_bytes,
        settings=settings,
    )
