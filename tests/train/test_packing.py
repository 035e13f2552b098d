"""Documents into blocks: nothing lost, nothing mixed up, end of text between documents."""

from __future__ import annotations

import pytest
import torch

from smolmoe.data.text import Document
from smolmoe.data.tokenizer import END_OF_TEXT, train_tokenizer
from smolmoe.errors import DataError
from smolmoe.train.packing import pack, tokenize

DOCUMENTS = [Document(f"document {number} says 1{number} and ünïcode {'x ' * number}") for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, 300)


def test_each_document_ends_with_end_of_text_and_decodes_to_itself(tokenizer):
    for document, ids in zip(DOCUMENTS, tokenize(tokenizer, DOCUMENTS), strict=True):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(ids) == document.text + END_OF_TEXT


def test_digits_are_tokens_of_their_own(tokenizer):
    assert [tokenizer.decode([token]) for token in tokenizer("12 345")["input_ids"]][:2] == ["1", "2"]
    assert len(tokenizer("345")["input_ids"]) == 3


def test_blocks_are_the_shuffled_cuts_of_the_joined_documents(tokenizer):
    stream = torch.tensor([token for ids in tokenize(tokenizer, DOCUMENTS) for token in ids])
    blocks = pack(tokenizer, DOCUMENTS, 16, seed=1)
    cuts = stream[: len(stream) // 16 * 16].view(-1, 16)
    assert blocks.shape == cuts.shape
    assert sorted(blocks.tolist()) == sorted(cuts.tolist())
    assert not torch.equal(blocks, cuts)
    assert torch.equal(blocks, pack(tokenizer, DOCUMENTS, 16, seed=1))
    assert not torch.equal(blocks, pack(tokenizer, DOCUMENTS, 16, seed=2))


def test_too_little_text_for_one_block(tokenizer):
    with pytest.raises(DataError, match="do not fill a block of 64"):
        pack(tokenizer, [Document("short")], 64)
    with pytest.raises(DataError, match="do not fill"):
        pack(tokenizer, [], 64)
