"""Held-out figures against what a loop over the rows gives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import dense_llama, tiny_tokenizer
from tests.alignment.runs import moe_folder

from smolmoe.alignment.examples import Example
from smolmoe.alignment.measure import Answers, RouterState, drift, held_out_answers, router_state
from smolmoe.alignment.tokens import Row, tokenised
from smolmoe.moe.loading import load_model


def pairs() -> list[Row]:
    texts = ("the sum of three", "seven", "everyone can see", "def add", "return a + b", "four and three are seven")
    examples = [Example(f"{text}\n", f"{text} of {text}"[: 4 + 7 * at], "no", text) for at, text in enumerate(texts)]
    return tokenised(examples * 2, tiny_tokenizer(), 64)[0]


def test_log_probabilities_are_those_of_each_row_alone() -> None:
    model, rows = dense_llama(), pairs()
    found = held_out_answers(model, rows)
    assert found.rejected is not None
    for at, row in enumerate(rows):
        for answer, value in ((row.chosen, found.chosen[at]), (row.rejected, found.rejected[at])):
            ids = torch.tensor([row.prompt + answer])
            labels = ids.clone()
            labels[:, : len(row.prompt)] = -100
            loss = model(ids, labels=labels).loss
            assert value.item() == pytest.approx(-loss.item() * len(answer), rel=1e-5)
    assert found.loss == pytest.approx(-found.chosen.sum().item() / sum(len(row.chosen) for row in rows))


def test_figures_of_pairs() -> None:
    before = Answers(torch.tensor([-3.0, -2.0]), torch.tensor([-4.0, -1.0]), 5)
    after = Answers(torch.tensor([-2.0, -2.0]), torch.tensor([-5.0, -2.5]), 5)
    assert before.to_json() == {"loss": 1.0, "accuracy": 0.5, "margin": 0.0}
    found = after.to_json(before, beta=0.1)
    assert (found["accuracy"], found["margin"], found["reward_accuracy"]) == (1.0, 1.75, 1.0)
    assert found["reward_margin"] == pytest.approx(0.175)
    assert Answers(torch.tensor([-3.0]), None, 2).to_json(before) == {"loss": 1.5}


def test_routing_of_prompts_is_that_of_each_alone(tmp_path: Path) -> None:
    model, rows = load_model(moe_folder(tmp_path / "moe")), pairs()
    state = router_state(model, rows)
    assert state is not None
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    assert state.logits.shape == (2, sum(map(len, prompts)), 4)
    alone = router_state(model, rows[:1])
    assert alone is not None
    torch.testing.assert_close(state.logits[:, : len(prompts[0])], alone.logits, atol=1e-5, rtol=1e-4)
    assert (state.chosen.sum(-1) == 2).all()
    assert router_state(dense_llama(), rows) is None
    still = drift(state, state)
    assert (still["changed"], still["kl"], still["weights"]) == (0, 0, 0)


def test_drift_by_hand() -> None:
    def state(logits: list[float], chosen: list[bool], weight: float) -> RouterState:
        weights = torch.full((1, 3, 2), weight)
        return RouterState(torch.tensor([[logits]]), torch.tensor([[chosen]]), weights, "softmax")

    before = state([math.log(2.0), 0.0, 0.0], [True, True, False], 1.0)  # 1/2, 1/4, 1/4
    after = state([0.0, 0.0, math.log(2.0)], [True, False, True], 1.5)  # 1/4, 1/4, 1/2
    found = drift(before, after)
    assert found["tokens"] == 1
    assert found["changed"] == 0.5
    assert found["kl"] == pytest.approx(0.25 * math.log(2))
    assert found["weights"] == pytest.approx(0.5)
