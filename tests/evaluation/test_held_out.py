"""Held-out losses: whole documents, every token once, the same for every model."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from smolmoe.evaluation.held_out import DocumentLosses, cut_windows, document_losses, paired_difference

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
TEXTS = [list(range(2, 2 + count)) for count in (9, 3, 20, 1, 14, 5)]
DOMAINS = ["code", "math", "code", "math", "code", "math"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def windows(**options):
    return cut_windows(TEXTS, DOMAINS, **{"length": 8, "start": 0, "budget": 1000, "per_document": 1000} | options)


def test_every_token_is_predicted_once_from_its_own_document():
    held_out = windows()
    for index, text in enumerate(TEXTS):
        own = [window for window, owner in zip(held_out.windows, held_out.owners, strict=True) if owner == index]
        assert own[0][0] == 0
        assert [token for window in own for token in window[1:]] == text
        assert all(a[-1] == b[0] for a, b in itertools.pairwise(own))
        assert max(len(window) for window in own) <= 9
    assert held_out.tokens == sum(map(len, TEXTS))


def test_budgets_are_kept_per_domain_and_document():
    held_out = windows(budget=10, per_document=6)
    losses = document_losses(LlamaForCausalLM(LlamaConfig(**SIZES)), held_out)
    assert list(zip(losses.domains, losses.tokens, strict=True)) == [
        ("code", 6), ("math", 3), ("code", 6), ("math", 1), ("math", 5)
    ]  # fmt: skip


def test_losses_are_those_of_each_window_by_itself(model):
    held_out = windows()
    losses = document_losses(model, held_out, batch=3)
    expected = [0.0] * len(TEXTS)
    for window, owner in zip(held_out.windows, held_out.owners, strict=True):
        ids = torch.tensor([window])
        with torch.no_grad():
            expected[owner] += model(input_ids=ids, labels=ids).loss.item() * (len(window) - 1)
    assert losses.nll == pytest.approx(expected, rel=1e-5)
    assert losses.loss == pytest.approx(sum(expected) / held_out.tokens, rel=1e-5)
    math_tokens = sum(len(TEXTS[index]) for index in (1, 3, 5))
    assert losses.by_domain["math"] == pytest.approx(
        sum(expected[index] for index in (1, 3, 5)) / math_tokens, rel=1e-5
    )
    assert losses.nll == pytest.approx(document_losses(model, held_out, batch=100).nll, rel=1e-5)


def test_the_model_is_left_in_its_mode(model):
    model.train()
    document_losses(model, windows())
    assert model.training
    model.eval()


def test_paired_difference():
    tokens, domains = (10, 20, 30, 40), ("a",) * 4
    a = DocumentLosses((20.0, 40.0, 60.0, 80.0), tokens, domains)
    b = DocumentLosses((15.0, 30.0, 45.0, 60.0), tokens, domains)
    assert paired_difference(a, b) == pytest.approx((0.5, 0.5, 0.5))  # the same on each: no doubt about it
    c = DocumentLosses((25.0, 30.0, 70.0, 75.0), tokens, domains)
    value, low, high = paired_difference(a, c)
    assert value == pytest.approx(a.loss - c.loss)
    assert low < value < high
    assert low < 0 < high
    assert paired_difference(a, c) == paired_difference(a, c)
    with pytest.raises(ValueError, match="same documents"):
        paired_difference(a, DocumentLosses((1.0,), (1,), ("a",)))
