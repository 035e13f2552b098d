"""Answers of a causal language model to many prompts, in batches; each prompt has its own random numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList

from smolmoe.core.devices import in_double, pick_device
from smolmoe.core.progress import Progress
from smolmoe.errors import DataError, RequestError, SourceError
from smolmoe.inference.chat_format import TurnEnd, turn_end
from smolmoe.moe.loading import Skeleton, load_model, load_tokenizer

_CONTEXT = 64  # tokens of a prompt that its answer is decoded with


def answering_tokenizer(folder: Path, field: str = "model") -> Any:
    """The tokenizer of a model's folder.

    Args:
        field: named in the error.

    Raises:
        SourceError: the tokenizer is missing or cannot be read.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise SourceError("the model has no tokenizer.", field=field, value=str(folder), fix="Add its files.")
    return tokenizer


def answering_model(folder: Path, device: str) -> Any:
    """The model of a folder in the dtype that it is stored in, on the device.

    Raises:
        RequestError: there is no such device.
        SourceError: no such model, or one that transformers cannot run.
        CheckpointError: its files are missing or corrupt.
    """
    return load_model(folder, dtype=Skeleton(folder).stored_dtype(), device=pick_device(device))


@dataclass(frozen=True)
class Samples:
    """One answer for each prompt.

    Attributes:
        texts: the answers, without the prompts.
        new_tokens: of all answers, end-of-text tokens included.
        cut: number of answers that reached `max_new_tokens` without ending.
        seconds: for all answers.
    """

    texts: tuple[str, ...]
    new_tokens: int
    cut: int
    seconds: float


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seeds: Sequence[Sequence[int]] | None = None,
    device: str | None = None,
    report: Progress | None = None,
) -> Samples:
    """Answer every prompt once, by `generate` of transformers on prompts of similar length, padded on the left.

    Answers end at the model's or the tokenizer's end-of-text token. With a temperature a token is sampled with a random
    number from its prompt's seed and its position: other rows of the batch change an answer only by rounding in the
    model's logits.

    Args:
        model: in memory; its training mode is restored.
        prompts: token ids of each.
        temperature: 0 always takes the most likely token.
        seeds: of each prompt, integers >= 0; by default a prompt's index.
        device: to move the model to; None does not move it.

    Raises:
        RequestError: a value out of its range.
        DataError: a prompt that leaves no room in the model's positions.
    """
    check_values(max_new_tokens=max_new_tokens, batch_size=batch_size, temperature=temperature)
    check_room(prompts, max_new_tokens, model.config)
    if device is not None:
        model.to(device)
    seeds = [(index,) for index in range(len(prompts))] if seeds is None else seeds
    ends = end_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    new_tokens, cut = 0, 0
    started = time.monotonic()
    with plain_generation(model, ends):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            if report is not None:
                report("Answering", first, len(order))
            answers = _answer(
                model,
                [prompts[index] for index in chosen],
                [seeds[index] for index in chosen],
                max_new_tokens,
                temperature,
            )
            for index, answer in zip(chosen, answers, strict=True):
                ids = until_end(answer, ends)
                new_tokens += len(ids)
                cut += ids[-1] not in ends
                texts[index] = answer_text(tokenizer, list(prompts[index]), ids)
    if report is not None:
        report("Answering", len(order), len(order))
    return Samples(tuple(texts), new_tokens, cut, time.monotonic() - started)


def _answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
) -> list[list[int]]:
    """The new tokens of each prompt of a batch, those after the end of text included."""
    ids, mask = padded(prompts, model.device, side="left")
    longest = ids.shape[1]
    draws = _uniform(seeds, max_new_tokens) if temperature else None
    drawing = [] if draws is None else [_Draw(torch.from_numpy(draws), temperature, longest)]
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            logits_processor=LogitsProcessorList(drawing),
        )
    return out[:, longest:].tolist()


def padded(
    sequences: Sequence[Sequence[int]], device: Any, *, side: str = "right", value: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [B, S], padded with a token that nothing attends to."""
    rows = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


class _Draw:
    """Keeps of each row's logits only the token that the row's random number selects from their distribution.

    `generate` itself samples a whole batch from one stream: an answer would depend on its neighbours.
    """

    def __init__(self, numbers: torch.Tensor, temperature: float, start: int):
        self.numbers = numbers  # [B, new tokens], in [0, 1)
        self.temperature = temperature
        self.start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulated = (in_double(scores) / self.temperature).softmax(dim=-1).cumsum(dim=-1)
        self.numbers = self.numbers.to(cumulated.device)  # once
        number = self.numbers[:, input_ids.shape[1] - self.start, None]
        # Rounding may make the total less than 1; a token of probability 0 is never the first above the number.
        chosen = torch.searchsorted(cumulated, number * cumulated[:, -1:], right=True).clamp_(max=scores.shape[1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen.to(scores.device), 0.0)


def _uniform(seeds: Sequence[Sequence[int]], count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each seed, whatever its place in the batch [B, count]."""
    return np.stack([np.random.default_rng(list(seed)).random(count) for seed in seeds])


@contextmanager
def plain_generation(model: Any, ends: list[int]) -> Iterator[None]:
    """Within, the model is in evaluation mode, and ignores the checkpoint's generation settings but the end of text."""
    was_training, settings = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0)
    try:
        yield
    finally:
        model.generation_config = settings
        model.train(was_training)


def check_values(*, max_new_tokens: int, batch_size: int, temperature: float) -> None:
    """Raise RequestError for a value out of its range."""
    valid = {
        "max_new_tokens": (max_new_tokens, max_new_tokens >= 1, "at least 1"),
        "batch_size": (batch_size, batch_size >= 1, "at least 1"),
        "temperature": (temperature, 0 <= temperature < float("inf"), "0 (greedy) or above"),
    }
    check_ranges(valid)


def check_ranges(valid: Mapping[str, tuple[object, bool, str]]) -> None:
    """Raise RequestError for the first field whose value is out of its range.

    Args:
        valid: field -> value, whether it is in range, and the range in words.
    """
    for field, (value, is_valid, wanted) in valid.items():
        if not is_valid:
            raise RequestError("is out of range.", field=field, value=value, fix=f"Use a value {wanted}.")


def check_room(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, config: Any, where: Sequence[str] | None = None
) -> None:
    """Raise DataError if prompts and answers may exceed the model's positions, naming the longest prompt.

    Args:
        where: each prompt's place in its file.
    """
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    lengths = list(map(len, prompts))
    if room is None or not lengths or max(lengths) + max_new_tokens <= room:
        return
    longest = lengths.index(max(lengths))
    place = f"prompt {longest + 1}" if where is None else where[longest]
    over = sum(length + max_new_tokens > room for length in lengths)
    left = room - lengths[longest]
    shorter = f"Use max_new_tokens of at most {left}, or leave" if left > 0 else "Leave"
    raise DataError(
        f"{place}: {lengths[longest]} tokens and {max_new_tokens} new ones exceed the model's {room} positions "
        f"({over} of {len(lengths)} prompts do).",
        field="max_new_tokens",
        value=max_new_tokens,
        fix=f"{shorter} the long rows out.",
    )


def end_tokens(model: Any, tokenizer: Any, turn: TurnEnd | None = None) -> list[int]:
    """The tokens that end a text, of those that the model has.

    These are all of the model's generation settings, the tokenizer's, and the one that ends a turn in its chat
    template, which in many checkpoints is none of the others.

    Args:
        turn: the end of a turn, if it is known already.
    """
    own = model.generation_config.eos_token_id
    ends = list(own) if isinstance(own, list | tuple) else [own]
    ends += [tokenizer.eos_token_id, (turn_end(tokenizer) if turn is None else turn).token]
    known = model.get_input_embeddings().weight.shape[0]
    return [token for token in dict.fromkeys(ends) if token is not None and token < known]


def until_end(answer: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The answer up to its first end-of-text token, which is kept; what follows is padding."""
    end = next((at for at, token in enumerate(answer) if token in ends), len(answer) - 1)
    return list(answer[: end + 1])


def answer_text(tokenizer: Any, prompt: list[int], answer: list[int]) -> str:
    """The answer's text, decoded with the prompt, since some tokenizers drop the space before a first token."""
    prompt = prompt[-_CONTEXT:]
    whole = tokenizer.decode(prompt + answer, skip_special_tokens=True)
    start = tokenizer.decode(prompt, skip_special_tokens=True)
    return whole[len(start) :] if whole.startswith(start) else tokenizer.decode(answer, skip_special_tokens=True)
