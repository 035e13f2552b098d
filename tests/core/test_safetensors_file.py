"""Headers are taken where the safetensors library takes them, and numbers that are none are found by name."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from smolmoe.core.checkpoint import Checkpoint
from smolmoe.core.safetensors_file import not_finite, read_header
from smolmoe.errors import CheckpointError

HEADER: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def write(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def changed(tensor: str, **values: object) -> dict[str, Any]:
    return {**HEADER, tensor: {**HEADER[tensor], **values}}


TWICE = b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
BAD: dict[str, tuple[object, str]] = {
    "overlap": (changed("b", shape=[6], data_offsets=[12, 24]), "'b' overlaps"),
    "gap": (changed("a", shape=[3], data_offsets=[0, 12]), "'b' leaves 4 bytes"),
    "hole at the start": (changed("a", shape=[3], data_offsets=[4, 16]), "'a' leaves 4 bytes"),
    "past the end": (changed("b", shape=[8], data_offsets=[16, 32]), "truncated"),
    "twice": (TWICE, "'a' is given twice"),
    "unknown dtype": (changed("b", dtype="Q9"), "Q9"),
    "dtype no text": (changed("b", dtype=5), "tensor 'b'"),
    "negative shape": (changed("a", shape=[-2, -2]), "tensor 'a'"),
    "shape of floats": (changed("a", shape=[2.0, 2.0]), "tensor 'a'"),
    "shape of truths": (changed("a", shape=[True, 4]), "tensor 'a'"),
    "shape null": (changed("a", shape=None), "tensor 'a'"),
    "huge shape": (changed("a", shape=[1 << 62, 1 << 62]), "tensor 'a'"),
    "not its span": (changed("a", shape=[3]), "tensor 'a'"),
    "offsets backwards": (changed("a", data_offsets=[16, 0]), "tensor 'a'"),
    "negative offset": (changed("a", data_offsets=[-16, 0]), "tensor 'a'"),
    "three offsets": (changed("a", data_offsets=[0, 16, 24]), "tensor 'a'"),
    "no offsets": ({**HEADER, "a": {"dtype": "F32", "shape": [4]}}, "tensor 'a'"),
    "entry null": ({**HEADER, "a": None}, "tensor 'a'"),
    "metadata of numbers": ({**HEADER, "__metadata__": {"x": 1}}, "expected a string"),
    "a list": ([], "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "not UTF-8": (b'{"\xff":1}', "corrupt header"),
    "deep": (b'{"a":' * 100_000, "deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_header_that_is_not_right_is_refused_by_name(name: str, tmp_path: Path) -> None:
    header, says = BAD[name]
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(write(tmp_path / "bad.safetensors", header))
    assert "bad.safetensors" in str(caught.value)


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    """Random bytes of a good header changed: never taken by us and refused by the library that will load the file."""
    draw, taken, path = random.Random(0), 0, tmp_path / "file.safetensors"
    good = json.dumps(HEADER).encode()
    for _ in range(300):
        text = bytearray(good)
        for _ in range(draw.randint(0, 2)):
            text[draw.randrange(len(text))] = draw.choice(b'0123456789-.[]{},:"aFB ')
        write(path, bytes(text))
        try:
            infos = read_header(path)
        except CheckpointError:
            continue
        taken += 1
        try:
            with safe_open(path, "pt") as file:
                assert set(file.keys()) == set(infos)
                assert all(file.get_slice(name).get_shape() == list(info.shape) for name, info in infos.items())
        except SafetensorError as error:
            pytest.fail(f"taken by us, refused by the library: {bytes(text)!r}: {error}")
    assert 50 < taken < 250


@pytest.mark.parametrize(
    "values", [{"a": torch.ones(2), "b": torch.zeros(0, 3)}, {"x": torch.ones(3).to(torch.float8_e4m3fn)}]
)
def test_a_good_file_is_taken(values: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(values, tmp_path / "good.safetensors")
    assert {name: info.shape for name, info in read_header(tmp_path / "good.safetensors").items()} == {
        name: tuple(tensor.shape) for name, tensor in values.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_are_counted(dtype: torch.dtype, tmp_path: Path) -> None:
    """On 2 million values, so that more than one chunk is looked at; the largest finite values are finite."""
    good = torch.randn(2_000_000).to(dtype)
    good[:2] = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min]).to(dtype)
    bad = good.clone()
    bad[[0, 700_000, 1_999_999]] = torch.tensor([float("nan"), float("inf"), float("-inf")]).to(dtype)
    bias = torch.tensor([0.0, float("-inf")], dtype=dtype)  # switches an expert off
    save_file({"bad": bad, "good": good, "gate.e_score_correction_bias": bias}, tmp_path / "x.safetensors")
    checkpoint = Checkpoint(tmp_path, read_header(tmp_path / "x.safetensors"))
    assert checkpoint.not_finite() == {"bad": 3}
    for look in (checkpoint.check_finite, lambda: checkpoint.read("bad")):
        with pytest.raises(CheckpointError, match=r"bad.*3 of its 2,000,000 values in x\.safetensors"):
            look()
    assert torch.equal(checkpoint.read("good"), good)
    assert torch.equal(checkpoint.read("bad", (1, 700_000)), bad[1:700_000])
    assert bool(checkpoint.read("bad", finite=False)[0].isnan())
    checkpoint.check_finite(["good", "gate.e_score_correction_bias"])


def test_a_bias_of_nan_is_found() -> None:
    values = np.array([np.nan, -np.inf], dtype=np.float32)
    assert not_finite(values.tobytes(), "F32", infinite=False) == 1
    assert not_finite(values.tobytes(), "F32") == 2
    assert not_finite(values.tobytes(), "I32") == 0


# -- what every command does with such weights -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dense` and `moe` with one NaN each, and the same without under `good`."""
    import shutil

    from tests import zoo
    from tests.helpers import edit_tensors

    from smolmoe import upcycle

    work = tmp_path_factory.mktemp("nan")
    shutil.copytree(zoo.folder("llama"), work / "good" / "dense")
    upcycle(work / "good" / "dense", work / "good" / "moe", experts=4, top_k=2, verify="none")
    for name, tensor in (("dense", DENSE), ("moe", MOE)):
        shutil.copytree(work / "good" / name, work / name)
        edit_tensors(work / name, lambda tensors, tensor=tensor: tensors[tensor][3, 4].fill_(float("nan")))
    return work


DENSE = "model.layers.1.mlp.up_proj.weight"
MOE = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


def commands() -> dict[str, tuple[Callable[[Path, Path], object], str]]:
    from smolmoe.distillation.cache import _teacher
    from smolmoe.distillation.options import CacheOptions
    from smolmoe.moe.loading import load_model
    from smolmoe.recipe import TrainRecipe, parse
    from smolmoe.surgery.experts import run as experts
    from smolmoe.surgery.export.run import export
    from smolmoe.surgery.run import upcycle
    from smolmoe.training.run import estimate
    from smolmoe.verification.verify import verify

    size = {"experts": 4, "top_k": 2, "verify": "none"}

    def train(work: Path, out: Path) -> object:
        data = {"sources": [{"preset": "embedded"}], "length": 32}
        values = {"out": out, "model": {"path": str(work / "dense")}, "data": data, "trainer": {"max_steps": 1}}
        return estimate(parse(TrainRecipe, values))

    return {
        "upcycle": (lambda work, out: upcycle(work / "dense", out, **size), DENSE),
        "upcycle, dry": (lambda work, out: upcycle(work / "dense", out, dry_run=True, **size), DENSE),
        "upcycle, noise": (lambda work, out: upcycle(work / "dense", out, diversify="noise", **size), DENSE),
        "specialist": (
            lambda work, out: upcycle(
                work / "good/dense", out, expert={"x": str(work / "dense")}, top_k=1, verify="none"
            ),
            DENSE,
        ),
        "extract": (lambda work, out: experts.extract(work / "moe", out, ["2"]), MOE),
        "extract, dry": (lambda work, out: experts.extract(work / "moe", out, ["2"], dry_run=True), MOE),
        "prune": (lambda work, out: experts.prune(work / "moe", out, keep=["0", "1"]), MOE),
        "export": (lambda work, out: export(work / "moe", out, to="granitemoeshared"), MOE),
        "verify": (lambda work, out: verify(work / "dense", work / "good/moe"), DENSE),
        "load": (lambda work, out: load_model(work / "moe"), MOE),
        "train": (train, DENSE),
        "teacher": (lambda work, out: _teacher(str(work / "dense"), CacheOptions()), DENSE),
    }


@pytest.mark.parametrize("name", commands())
def test_every_command_refuses_nan(name: str, folders: Path, tmp_path: Path) -> None:
    run, tensor = commands()[name]
    with pytest.raises(CheckpointError, match=r"1 of its 1,536 values in model\.safetensors") as caught:
        run(folders, tmp_path / "out")
    assert caught.value.value == tensor
    assert list(tmp_path.iterdir()) == []


def test_doctor_and_verify_say_which_weights(folders: Path) -> None:
    from smolmoe.verification.doctor import doctor
    from smolmoe.verification.verify import verify

    (found,) = doctor(folders / "moe", sequences=2, length=16).findings
    assert found.code == "not-finite"
    assert f"{MOE} (1 of its 1,536 values in model.safetensors" in found.message
    result = verify(folders / "good/dense", folders / "moe", sequences=2, length=16, new_tokens=2)
    (check,) = [check for check in result.checks if check.name == "weights"]
    assert not check.passed
    assert MOE in check.meaning
