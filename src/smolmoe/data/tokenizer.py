"""Train a small tokenizer, so that none needs to be downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from smolmoe.data.text import Document

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"


def train_tokenizer(
    documents: Sequence[Document], vocabulary: int, *, report: Callable[[int, int], None] | None = None
) -> Any:
    """A byte-level BPE tokenizer learned from `documents`, as a `PreTrainedTokenizerFast`.

    Every digit is a separate token, so that numbers are encoded consistently. Any text can be encoded, and
    decodes to itself.

    Args:
        vocabulary: entries at most, the 256 bytes and the two special tokens (end of text, padding) included.
        report: called with the number of documents read so far, and their total.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for number, document in enumerate(documents, 1):
            if report is not None and number % 100 == 0:
                report(number, len(documents))
            yield document.text

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
    tokenizer.train_from_iterator(texts(), trainer, length=len(documents))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )
