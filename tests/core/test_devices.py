"""One place says what a device may be called, what is here, and what was used."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import dense_folder, moe_folder, recipe, trainer, write_text

import smolmoe
from smolmoe.core import devices
from smolmoe.core.devices import device_name, pick_device
from smolmoe.distillation.run import cache_teacher
from smolmoe.engines.run import verify_in
from smolmoe.errors import RequestError
from smolmoe.evaluation.compare.run import compare
from smolmoe.evaluation.correction import score_checkpoint
from smolmoe.inference.generate import generate
from smolmoe.probing.measure import probe
from smolmoe.recipe import TrainRecipe, parse
from smolmoe.surgery.experts.run import extract
from smolmoe.surgery.export.run import export
from smolmoe.surgery.run import upcycle
from smolmoe.training.estimate import estimate
from smolmoe.training.run import train
from smolmoe.verbs.measure import bench
from smolmoe.verification.doctor import doctor
from smolmoe.verification.precision import full_precision
from smolmoe.verification.verify import verify

GPUS = torch.cuda.device_count()
ABSENT = f"cuda:{GPUS}"


def test_what_is_here_is_taken_and_the_best_is_found() -> None:
    assert pick_device("auto") == next(iter(devices.available()))
    assert pick_device("cpu") == "cpu"
    assert device_name("cpu")
    for index in range(GPUS):
        assert pick_device(f"cuda:{index}") == f"cuda:{index}"


@pytest.mark.parametrize(
    ("there", "best"),
    [
        ({"cuda": 2, "xpu": 1, "cpu": 1}, "cuda"),
        ({"xpu": 1, "mps": 1, "cpu": 1}, "xpu"),
        ({"mps": 1, "cpu": 1}, "mps"),
        ({"cpu": 1}, "cpu"),
    ],
)
def test_auto_is_the_fastest_that_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, there: dict[str, int], best: str
) -> None:
    monkeypatch.setattr(devices, "available", lambda: there)
    monkeypatch.setattr(devices, "problem_of", lambda device: None)
    monkeypatch.setattr(devices, "device_name", lambda device: f"a {device}")
    with caplog.at_level(logging.INFO, "smolmoe"):
        assert pick_device("auto") == best
    assert caplog.messages[-1].startswith(f"device: {best} (a {best}")
    assert pick_device("cpu") == "cpu"
    with pytest.raises(RequestError, match="not available") as caught:
        pick_device("cuda:2")
    assert "cpu, which this machine has" in str(caught.value.fix)
    assert ("cuda:1" in str(caught.value.fix)) == (there.get("cuda") == 2)
    monkeypatch.setattr(devices, "problem_of", lambda device: None if device == "cpu" else "it is busy")
    assert pick_device("auto") == "cpu"
    if best != "cpu":
        assert f"{best} is here, but cannot be used: it is busy." in caplog.messages
        with pytest.raises(RequestError, match="cannot be used: it is busy"):
            pick_device(best)


def test_a_choice_of_a_device_is_auto_everywhere() -> None:
    functions = [getattr(smolmoe, name) for name in smolmoe.__all__]
    functions += [verify, doctor, probe, compare, cache_teacher, generate, verify_in, score_checkpoint]
    asked = {
        function.__qualname__: place.default
        for function in functions
        if callable(function) and not isinstance(function, type)
        for name, place in inspect.signature(function).parameters.items()
        if name == "device"
    }
    assert len(asked) > 20
    assert {name for name, default in asked.items() if default != "auto"} == set()


@pytest.mark.parametrize("allowed", ["tf32", "ieee", "none"])
def test_float32_is_float32_where_it_must_be(allowed: str) -> None:
    products: Any = torch.backends.cuda.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = allowed
        with full_precision():
            assert products.fp32_precision != "tf32"
        assert products.fp32_precision == allowed
    finally:
        products.fp32_precision = before


def test_verification_computes_in_full_float32(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products: Any = torch.backends.cuda.matmul
    before, seen = products.fp32_precision, []
    monkeypatch.setattr(
        "smolmoe.verification.verify.run_dense", lambda *args: seen.append(products.fp32_precision) or 1 / 0
    )
    try:
        products.fp32_precision = "tf32"
        with pytest.raises(ZeroDivisionError):
            verify(place / "dense", place / "moe")
    finally:
        products.fp32_precision = before
    assert seen == ["ieee"]


@pytest.mark.parametrize("word", ["abacus", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "meta", "CUDA", "cuda:0:1"])
def test_no_name_of_a_device(word: str) -> None:
    with pytest.raises(RequestError, match="auto, cpu, cuda, cuda:N, xpu or mps") as caught:
        pick_device(word)
    assert caught.value.field == "device"
    assert "cpu" in str(caught.value.fix)


def test_what_is_not_here_is_refused_with_what_is() -> None:
    with pytest.raises(RequestError, match="not available on this machine") as caught:
        pick_device(ABSENT)
    assert caught.value.value == ABSENT
    assert "which this machine has" in str(caught.value.fix)
    assert "cpu" in str(caught.value.fix)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    dense_folder(folder / "dense")
    moe_folder(folder / "moe")
    write_text(folder / "text.jsonl")
    return folder


@pytest.mark.parametrize(
    "call",
    [
        lambda at: train(recipe(at, at / "moe", device=ABSENT)),
        lambda at: estimate(parse(TrainRecipe, recipe(at, at / "moe", device=ABSENT))),
        lambda at: upcycle(at / "dense", at / "out", device=ABSENT),
        lambda at: verify(at / "dense", at / "moe", device=ABSENT),
        lambda at: doctor(at / "moe", device=ABSENT),
        lambda at: generate(at / "moe", "the sum", device=ABSENT),
        lambda at: probe(at / "moe", at / "text.jsonl", out=at / "out", device=ABSENT),
        lambda at: compare({"a": at / "dense", "b": at / "moe"}, at / "text.jsonl", device=ABSENT),
        lambda at: bench(at / "moe", device=ABSENT),
        lambda at: cache_teacher(at / "dense", at / "text.jsonl", at / "out", top_k=4, device=ABSENT),
        lambda at: export(at / "moe", at / "out", "generic", device=ABSENT),
        lambda at: extract(at / "moe", at / "out", 0, device=ABSENT),
    ],
)
def test_every_command_refuses_what_is_not_here(place: Path, call: Any) -> None:
    with pytest.raises(RequestError, match="not available on this machine") as caught:
        call(place)
    assert caught.value.field == "device"
    assert not (place / "out").exists()
    assert not (place / "run").exists()


def test_what_was_used_is_written_down(place: Path, tmp_path: Path) -> None:
    result = train(recipe(tmp_path, place / "moe", trainer=trainer(max_steps=1)))
    used = {"device": "cpu", "name": device_name("cpu")}
    assert result.summary["device"] == used
    assert json.loads((result.out / "run.json").read_text())["device"] == used
    assert generate(result.model, "the sum", max_new_tokens=1).device == "cpu"
