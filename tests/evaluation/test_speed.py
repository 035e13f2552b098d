"""Speed is read from `generate` itself, memory from the process, and ratios from rounds in turns."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dense_llama, random_moe

from smolmoe.errors import RequestError
from smolmoe.evaluation.bench.run import batch_ratios
from smolmoe.evaluation.memory import PeakMemory
from smolmoe.evaluation.speed import Reading, read_speed, summarise, times
from smolmoe.moe.loading import load_model
from smolmoe.results.bench import Times

MB = 10**6


def ticking() -> Any:
    """A clock that goes on by a second whenever it is asked."""
    now = iter(range(1000))
    return lambda: float(next(now))


def test_every_token_asked_for_is_timed_whatever_the_model_says() -> None:
    model = dense_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # the end of text at once
    lengths: list[int] = []
    model.register_forward_hook(lambda module, args, kwargs, out: lengths.append(out.logits.shape[0]), with_kwargs=True)
    reading = read_speed(model, batch_size=3, prompt_tokens=5, new_tokens=6, clock=ticking())
    assert reading.first_token == 1
    assert reading.tokens == (1, 1, 1, 1, 1)
    assert lengths == [3] * 6
    assert model.generation_config.eos_token_id == 0
    assert reading.peak_bytes >= reading.held_bytes > 0


def test_settings_of_generate_are_passed_on() -> None:
    from transformers import StaticCache

    model, seen = dense_llama(), []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(type(kwargs["cache"])), with_kwargs=True)
    read_speed(model, prompt_tokens=4, new_tokens=3)
    options = {"cache_implementation": "static", "disable_compile": True}
    read_speed(model, prompt_tokens=4, new_tokens=3, options=options)
    assert StaticCache not in seen[:3]
    assert seen[3:] == [StaticCache] * 3


def test_what_readings_come_to() -> None:
    readings = [
        Reading(2.0, (0.5, 0.5), 100, 300),
        Reading(1.0, (0.25, 1.0), 200, 340),
        Reading(4.0, (0.5, 0.5), 250, 350),
    ]
    speed = summarise(4, 10, readings)
    assert speed.first_token == Times(2.0, 4.0)
    assert speed.token == Times(0.5, 1.0)
    assert speed.prefill_tokens_per_second == 4 * 10 / 2.0
    assert speed.decode_tokens_per_second == 4 / 0.5
    assert speed.peak_bytes == 350
    assert speed.sample_bytes == (300 - 100) // 4
    assert times([float(value) for value in range(1, 101)]) == Times(50.5, 91.0)


def test_ratios_are_of_rounds_in_turns() -> None:
    """A machine that slows down for both leaves the ratio alone."""
    first = [Reading(1.0, (0.2, 0.2), 0, 300), Reading(10.0, (2.0, 2.0), 0, 200), Reading(2.0, (0.4, 0.4), 0, 100)]
    second = [Reading(0.5, (0.1, 0.1), 0, 100), Reading(5.0, (1.0, 1.0), 0, 150), Reading(0.5, (0.1, 0.1), 0, 100)]
    ratios = batch_ratios(1, first, second, of_bytes=1.5)
    assert (ratios.first_token.median, ratios.first_token.low, ratios.first_token.high) == (2.0, 2.0, 4.0)
    assert (ratios.decode.median, ratios.decode.low, ratios.decode.high) == (0.5, 0.25, 0.5)
    assert ratios.prefill.low == 0.25
    assert ratios.decode_for_bytes is not None
    assert ratios.decode_for_bytes.median == 0.75
    assert ratios.peak == 2.0
    assert batch_ratios(4, first, second, of_bytes=1.5).decode_for_bytes is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets a high-water mark back")
def test_a_peak_is_seen_and_forgotten() -> None:
    memory = PeakMemory("cpu")
    start = memory.held
    large = torch.ones(80 * MB // 4)
    del large
    assert memory.peak() - start > 70 * MB
    memory.reset()
    assert memory.held - start < 40 * MB
    assert memory.peak() - memory.held < 40 * MB
    kept = torch.ones(80 * MB // 4)
    memory.reset()
    assert memory.held - start > 70 * MB
    assert len(kept)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process has mapped")
def test_weights_of_their_own_let_the_file_go(tmp_path: Path) -> None:
    written = dense_llama(tie_word_embeddings=True)
    written.save_pretrained(tmp_path)
    mapped = Path("/proc/self/maps")
    model = load_model(tmp_path)
    assert str(tmp_path) in mapped.read_text()
    model = load_model(tmp_path, own=True)
    gc.collect()
    assert str(tmp_path) not in mapped.read_text()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    ids = torch.arange(5)[None]
    torch.testing.assert_close(model(ids).logits, written(ids).logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("batch_sizes", {"batch_size": 0}),
        ("prompt_tokens", {"prompt_tokens": 0}),
        ("new_tokens", {"new_tokens": 1}),
        ("prompt_tokens", {"prompt_tokens": 120, "new_tokens": 16}),
    ],
)
def test_what_cannot_be_read_is_refused(field: str, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        read_speed(random_moe("mixtral"), **options)
    assert caught.value.field == field
    assert caught.value.fix
