"""The token sequences that a model is measured on, and batches of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from smolmoe.errors import RequestError

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Sample:
    """Token sequences [S_i] of unequal lengths, and their source."""

    sequences: list[torch.Tensor]
    origin: str

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def draw_sample(
    tokenizer: Any | None, config: Any, text: Path | None, *, count: int, length: int, seed: int, reserve: int = 0
) -> Sample:
    """`count` sequences of at most `length` tokens of real text.

    Args:
        tokenizer: the model's; with None the tokens are random.
        config: the model's, for vocabulary and context.
        text: a file of documents; None for text from this Python installation.
        reserve: tokens of the context to keep free after each sequence.

    Raises:
        RequestError: count or length too small.
        DataError: `text` is not text.
    """
    if count < 1:
        raise RequestError("at least one sequence is needed.", field="sequences", value=count)
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or length + reserve
    longest = min(length, context - reserve)
    if longest < 4:
        raise RequestError(
            f"is too short for the measurement (with {reserve} new tokens in a context of {context}).",
            field="length",
            value=length,
            fix="Use at least 4 tokens in addition to the new ones.",
        )
    if tokenizer is None:
        return Sample(
            _random(config.get_text_config().vocab_size, count, longest, seed), "random tokens (no tokenizer)"
        )
    from smolmoe.data.text import default_documents, encode, read_documents

    documents = read_documents(text) if text else default_documents(seed)
    origin = str(text) if text else "text of this Python installation"
    ids = encode(tokenizer, documents, longest, count, seed, origin)
    return Sample([torch.tensor(sequence) for sequence in ids], origin)


def plain(sequence: torch.Tensor, device: str) -> dict[str, torch.Tensor]:
    """One sequence [S] as a separate batch, without a mask."""
    return {"input_ids": sequence[None].to(device)}


def padded(
    model: torch.nn.Module, sequences: Sequence[torch.Tensor], side: Side, device: str, *, pad: int = 0
) -> dict[str, torch.Tensor]:
    """Sequences [S_i] as one batch [B, S], with the mask and, if the model takes them, positions."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = real_positions(len(sequence), longest, side)
        ids[row, place] = sequence
        mask[row, place] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def real_positions(length: int, longest: int, side: Side) -> slice:
    """The place of the real tokens in a padded row."""
    return slice(longest - length, longest) if side == "left" else slice(0, length)


def _random(vocabulary: int, count: int, longest: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shortest = max(2, longest // 2)
    lengths = [longest - (index % (longest - shortest + 1)) for index in range(count)]
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]
