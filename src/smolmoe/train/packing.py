"""Documents into equal blocks of tokens for training."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smolmoe.data.text import Document
from smolmoe.errors import DataError

if TYPE_CHECKING:
    import torch


def tokenize(tokenizer: Any, documents: Sequence[Document]) -> list[list[int]]:
    """The token ids of each document, with the tokenizer's end-of-text token after them."""
    texts = [document.text for document in documents]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [[*ids, tokenizer.eos_token_id] for ids in encoded]


def pack(tokenizer: Any, documents: Sequence[Document], length: int, seed: int = 0) -> torch.Tensor:
    """The documents joined, cut into blocks, and the blocks shuffled: int64 [N, S].

    An end-of-text token stands between documents. What is left over at the end is dropped.

    Args:
        length: S, tokens a block.
        seed: of the blocks' order.

    Raises:
        DataError: the documents do not fill one block.
    """
    import torch

    stream = [token for ids in tokenize(tokenizer, documents) for token in ids]
    count = len(stream) // length
    if count == 0:
        raise DataError(
            f"{len(stream)} tokens do not fill a block of {length}.",
            field="data",
            value=f"{len(documents)} documents",
            fix="Give more text or take shorter blocks.",
        )
    blocks = torch.tensor(stream[: count * length], dtype=torch.long).view(count, length)
    return blocks[random.Random(seed).sample(range(count), count)]
