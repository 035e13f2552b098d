"""One place says what a device may be called, what is here, and what was used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import dense_folder, moe_folder, recipe, trainer, write_text

from smolmoe.core.devices import device_name, pick_device
from smolmoe.distillation.run import cache_teacher
from smolmoe.errors import RequestError
from smolmoe.evaluation.compare.run import compare
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
from smolmoe.verification.verify import verify

GPUS = torch.cuda.device_count()
ABSENT = f"cuda:{GPUS}"


def test_what_is_here_is_taken_and_the_best_is_found() -> None:
    best = "cuda" if GPUS else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device(None) == pick_device("auto") == best
    assert pick_device("cpu") == "cpu"
    assert device_name("cpu")
    for index in range(GPUS):
        assert pick_device(f"cuda:{index}") == f"cuda:{index}"


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
