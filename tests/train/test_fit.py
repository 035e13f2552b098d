"""Training: it learns, it sees the batches in order, and it reports the language-modelling loss alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from smolmoe.train.fit import FitSettings, affordable_steps, fit

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.fixture
def blocks() -> torch.Tensor:
    """Counting, from different starts: [12, 16]."""
    return (torch.arange(16) + 5 * torch.arange(12)[:, None]) % 32


def dense() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def moe(weight: float) -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        **SIZES, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=weight
    )
    return MixtralForCausalLM(config)


def test_the_loss_falls(blocks):
    points = fit(dense(), blocks, FitSettings(steps=60, batch=4, learning_rate=1e-2, warmup=5))
    assert points[0].loss > 3
    assert points[-1].loss < 1


def test_batches_come_in_order_and_begin_again(blocks):
    model = dense()
    seen = []
    model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["input_ids"].clone()), with_kwargs=True)
    fit(model, blocks, FitSettings(steps=4, batch=4))
    assert torch.equal(torch.cat(seen), torch.cat((blocks, blocks[:4])))


def test_held_out_points_and_steps_are_reported(blocks):
    steps = []
    values = iter((3.0, 2.0, 1.0))
    points = fit(
        dense(),
        blocks,
        FitSettings(steps=8, batch=2, evaluations=3),
        evaluate=lambda model: next(values),
        on_step=lambda step, loss: steps.append((step, loss)),
    )
    train = [point for point in points if point.kind == "train"]
    assert [(point.step, point.loss) for point in train] == steps
    assert [step for step, _ in steps] == list(range(1, 9))
    assert [(point.step, point.loss) for point in points if point.kind == "held_out"] == [(2, 3.0), (4, 2.0), (6, 1.0)]
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(points))


def test_the_balance_loss_is_trained_on_but_not_reported(blocks):
    """The first loss is that of the same weights; a heavy balance loss then moves the router elsewhere."""
    settings = FitSettings(steps=2, batch=4, warmup=0)
    light, heavy = moe(0.0), moe(100.0)
    first = [fit(model, blocks, settings)[0].loss for model in (light, heavy)]
    assert first[0] == pytest.approx(first[1], abs=2e-2)
    assert first[0] < 4
    routers = [model.model.layers[0].mlp.gate.weight for model in (light, heavy)]
    assert not torch.allclose(*routers, atol=1e-4)


def test_the_same_seed_gives_the_same_model(blocks):
    models = [dense(), dense()]
    for model in models:
        fit(model, blocks, FitSettings(steps=3, batch=4))
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_nothing_is_printed(blocks, capfd):
    fit(dense(), blocks, FitSettings(steps=2, batch=2))
    assert capfd.readouterr().out == ""


def test_a_slow_machine_trains_fewer_steps_of_a_whole_schedule(blocks):
    model = dense()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    settings = FitSettings(steps=50, batch=2)
    assert affordable_steps(model, blocks, settings, seconds=1000) == 50
    assert affordable_steps(model, blocks, settings, seconds=1e-9) == 17  # a third, rounded up
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
