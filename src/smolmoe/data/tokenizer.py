"""Train a small tokenizer, so that none needs to be downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from smolmoe.data.text import Document

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
MOST_CHARACTERS = 50_000_000  # more text makes no better tokenizer


def train_tokenizer(
    documents: Iterable[Document], vocabulary: int, *, report: Callable[[int, int], None] | None = None
) -> Any:
    """A byte-level BPE tokenizer learned from `documents`, as a `PreTrainedTokenizerFast`.

    Every digit is a separate token, so that numbers are encoded consistently. Any text can be encoded, and
    decodes to itself.

    Args:
        documents: read until they have `MOST_CHARACTERS`.
        vocabulary: maximum size, the 256 bytes and the two special tokens (end of text, padding) included.
        report: called with the number of documents read so far, and their total.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    read, characters = list[str](), 0
    for document in documents:
        read.append(document.text)
        characters += len(document.text)
        if characters > MOST_CHARACTERS:
            break

    def texts() -> Iterator[str]:
        for number, text in enumerate(read, 1):
            if report is not None and number % 100 == 0:
                report(number, len(read))
            yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer, length=len(read))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )
