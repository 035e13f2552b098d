"""Batched answers are those that each prompt gets alone, and drawn from the model's own distribution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import dense_gpt2, dense_llama, moe_of, random_moe, save, tiny_tokenizer

from smolmoe.errors import DataError, RequestError
from smolmoe.inference.sampling import answer_text, end_tokens, sample_answers, until_end

TEXTS = ["a", "The sum of three and four", "def add(", "everyone can see that seven", "is", "b) \n return"]


def prompts_of(texts=TEXTS):
    tokenizer = tiny_tokenizer()
    return tokenizer, [tokenizer(text)["input_ids"] for text in texts]


def alone(model, prompt, tokens):
    """Greedy, one token at a time, by whole forward passes without a cache."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


MODELS = {
    "llama": dense_llama,
    "gpt2": dense_gpt2,
    "mixtral": lambda: moe_of(dense_llama()),
    "qwen3_moe": lambda: random_moe("qwen3_moe"),
    "olmoe": lambda: random_moe("olmoe"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_answers_as_each_prompt_alone(name):
    model = MODELS[name]()
    tokenizer, prompts = prompts_of()
    assert len(set(map(len, prompts))) > 3
    expected = [until_end(alone(model, prompt, 8), end_tokens(model, tokenizer)) for prompt in prompts]
    samples = sample_answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=4)
    assert samples.texts == tuple(answer_text(tokenizer, p, ids) for p, ids in zip(prompts, expected, strict=True))
    assert samples.new_tokens == sum(map(len, expected))


def test_the_generic_moe_answers_a_batch_as_each_prompt_alone(tmp_path):
    from smolmoe.moe.loading import load_model
    from smolmoe.surgery.run import upcycle

    upcycle(save(dense_llama(), tmp_path / "dense"), tmp_path / "moe", target="generic", experts=4, top_k=2)
    model = load_model(tmp_path / "moe")
    tokenizer, prompts = prompts_of()
    one_by_one = sample_answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=1)
    assert sample_answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=6).texts == one_by_one.texts


def test_an_answer_ends_at_the_end_of_text_and_not_before():
    model = dense_llama()
    tokenizer, prompts = prompts_of()
    free = alone(model, prompts[1], 6)
    model.generation_config.eos_token_id = free[3]
    at = free.index(free[3]) + 1
    steps: list[None] = []
    model.register_forward_hook(lambda *_: steps.append(None))
    samples = sample_answers(model, tokenizer, [prompts[1]], max_new_tokens=6, batch_size=1)
    assert (samples.new_tokens, samples.cut) == (at, 0)
    assert len(steps) == at < 6  # the model is not asked for more
    assert samples.texts[0] == answer_text(tokenizer, prompts[1], free[:at])


def test_what_is_drawn_does_not_depend_on_the_batch_but_on_the_seed():
    model = dense_llama()
    tokenizer, prompts = prompts_of()
    seeds = [(7, index) for index in range(len(prompts))]
    options = {"max_new_tokens": 10, "temperature": 1.0}
    together = sample_answers(model, tokenizer, prompts, batch_size=6, seeds=seeds, **options)
    one_by_one = sample_answers(model, tokenizer, prompts, batch_size=1, seeds=seeds, **options)
    backwards = sample_answers(model, tokenizer, prompts[::-1], batch_size=2, seeds=seeds[::-1], **options)
    assert together.texts == one_by_one.texts == backwards.texts[::-1]
    others = sample_answers(model, tokenizer, prompts, batch_size=6, seeds=[(8, s[1]) for s in seeds], **options)
    assert others.texts != together.texts


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_from_the_models_distribution(temperature):
    model = dense_llama()
    tokenizer, (prompt, *_) = prompts_of(["The sum"])
    draws = 2000
    samples = sample_answers(
        model, tokenizer, [prompt] * draws, max_new_tokens=1, batch_size=500, temperature=temperature
    )
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    wanted = (logits / temperature).softmax(-1)
    likely = wanted.argsort(descending=True)[:8].tolist()
    counts = Counter(samples.texts)
    for token in likely:
        text = answer_text(tokenizer, prompt, [token])
        same = sum(float(wanted[other]) for other in range(300) if answer_text(tokenizer, prompt, [other]) == text)
        assert counts[text] / draws == pytest.approx(same, abs=4 * (same * (1 - same) / draws) ** 0.5 + 1e-3)


def test_the_model_is_left_as_it_was():
    model = dense_llama().train()
    model.generation_config.max_new_tokens = 3
    settings = model.generation_config
    tokenizer, prompts = prompts_of()
    sample_answers(model, tokenizer, prompts, max_new_tokens=2, batch_size=2)
    assert model.training
    assert model.generation_config is settings
    assert settings.max_new_tokens == 3


def test_prompts_that_leave_no_room_are_named():
    tokenizer, prompts = prompts_of(["a", "a" * 126])
    with pytest.raises(
        DataError, match=r"prompt 2: 126 tokens and 8 new ones exceed the model's 128 positions \(1 of 2"
    ):
        sample_answers(dense_llama(), tokenizer, prompts, max_new_tokens=8, batch_size=2)


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("batch_size", 0), ("temperature", -1.0)])
def test_values_out_of_range_are_refused(field, value):
    tokenizer, prompts = prompts_of()
    options = {"max_new_tokens": 4, "batch_size": 2, "temperature": 0.0, field: value}
    with pytest.raises(RequestError, match=field):
        sample_answers(dense_llama(), tokenizer, prompts, **options)
