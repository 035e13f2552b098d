"""What is written is what the program says, byte for byte; nothing else is ever left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tests import zoo
from tests.processes import Child, wait_until
from tests.surgery.test_request import plan

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.errors import OutputError, RequestError
from smolmoe.surgery.convert import convert
from smolmoe.surgery.tensors import writer
from smolmoe.surgery.tensors.program import Block, OutTensor, Read
from smolmoe.surgery.tensors.values import block_values


def written(made: Any, out: Path) -> Path:
    object.__setattr__(made.recipe, "out", out)
    return convert(made)


def load(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"granularity": 2, "shared": "full", "dtype": "bfloat16"}),
        ("llama", {"diversify": "drop", "max_shard_size": "20KB"}),
        ("gpt2", {"shared": 16, "diversify": "noise"}),
        ("phi3", {"router": "zero"}),
    ],
)
@pytest.mark.parametrize("chunk", [1 << 24, 1 << 10])
def test_files_hold_the_program(
    name: str, options: dict[str, Any], chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved bytes, chunked rows and computed blocks all equal the block's values, for any chunk size."""
    monkeypatch.setattr(writer, "CHUNK", chunk)
    made = plan(name, **options)
    files = load(written(made, tmp_path / "moe"))
    sources = {key: source.checkpoint for key, source in made.sources.items()}
    assert set(files) == {tensor.name for tensor in made.tensors}
    for tensor in made.tensors:
        values = torch.cat([block_values(block, sources, 0).reshape(-1) for block in tensor.blocks])
        expected = values.to(getattr(torch, tensor.dtype)).reshape(tensor.shape)
        assert files[tensor.name].dtype == expected.dtype
        assert torch.equal(files[tensor.name], expected), tensor.name


def test_averages_of_several_sources(tmp_path: Path) -> None:
    paths = {"a": str(zoo.folder("llama", seed=1)), "b": str(zoo.folder("llama", seed=2))}
    files = load(written(plan(expert=paths), tmp_path / "moe"))
    a, b = (load(Path(path)) for path in paths.values())
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(files[name], (a[name] + b[name]) / 2)
    expert = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
    assert torch.equal(files[expert.format(0)], a["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(files[expert.format(1)], b["model.layers.1.mlp.down_proj.weight"])
    files = load(written(plan(expert=paths, attention="base"), tmp_path / "base"))
    assert torch.equal(files[name], load(zoo.folder("llama"))[name])


def test_a_sharded_source_gives_the_same_files(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    one = load(written(plan(shared="full", diversify="drop"), tmp_path / "one"))
    many = load(written(plan(source=str(tmp_path / "sharded"), shared="full", diversify="drop"), tmp_path / "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_shards_stay_under_their_size_and_are_indexed(tmp_path: Path) -> None:
    folder = written(plan(max_shard_size="30KB"), tmp_path / "moe")
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 5
    assert files[0].name.endswith(f"-of-{len(files):05d}.safetensors")
    assert set(open_checkpoint(folder).tensors) == set(load(folder))
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0MB", "1XB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RequestError):
        writer.parse_size(text)


def test_sizes() -> None:
    assert writer.parse_size("5GB") == 5 * 10**9
    assert writer.parse_size("1.5MiB") == 3 << 19


def test_copying_falls_back_where_the_kernel_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    folder = written(plan(), tmp_path / "moe")
    assert torch.equal(load(folder)["model.norm.weight"], load(zoo.folder("llama"))["model.norm.weight"])


# -- the folder -----------------------------------------------------------------------------------------------


def test_out_is_refused_where_it_must_not_be(tmp_path: Path) -> None:
    source = zoo.folder("llama")
    with pytest.raises(OutputError, match="inside the source"):
        written(plan(), source / "moe")
    with pytest.raises(OutputError, match="inside the source"):
        written(plan(overwrite=True), source)
    with pytest.raises(OutputError, match="contains the source"):
        written(plan(overwrite=True), source.parent)
    (tmp_path / "link").symlink_to(source)
    for out in (tmp_path / "link", tmp_path / "link" / "moe"):
        with pytest.raises(OutputError, match="inside the source"):
            written(plan(overwrite=True), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match="overwrite=True"):
        written(plan(), tmp_path / "mine")
    with pytest.raises(OutputError, match="not a model folder"):
        written(plan(overwrite=True), tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


@pytest.mark.parametrize("name", ["notes.txt", "results.json", "eval/scores.csv"])
def test_overwrite_loses_no_file_of_the_users(tmp_path: Path, name: str) -> None:
    mine = written(plan(), tmp_path / "moe") / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match=rf"holds {name.partition('/')[0]}, which is no part of a model"):
        written(plan(overwrite=True), tmp_path / "moe")
    assert mine.read_text() == "mine"


def test_overwrite_takes_no_folder_for_a_model_that_has_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OutputError, match="not a model folder"):
        written(plan(overwrite=True), tmp_path)


def test_overwrite_replaces_whole(tmp_path: Path) -> None:
    out = written(plan(max_shard_size="30KB"), tmp_path / "moe")
    written(plan(overwrite=True), out)
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["moe"]


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"the disk has 1(\.00)? kB free"):
        written(plan(), tmp_path / "moe")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def fill_up(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", fill_up)
    with pytest.raises(OutputError, match="disk is full"):
        written(plan(), tmp_path / "moe")
    assert calls == 41
    assert os.listdir(tmp_path) == []


_STOPPING_RUN = """
import sys, time
from smolmoe.surgery.tensors import writer
real, calls = writer._copy_some, []
def stopping(*args):
    calls.append(args)
    if len(calls) == 10:
        print("writing")
    while len(calls) >= 10:
        time.sleep(0.01)  # until a signal comes
    return real(*args)
writer._copy_some = stopping
sys.argv = ["smolmoe", "upcycle", {source!r}, {out!r}, "--verify", "none", "--overwrite"]
from smolmoe.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    """The old folder is untouched; what a kill leaves beside it is gone after the next run."""
    out = written(plan(seed=5), tmp_path / "moe")
    before = load(out)
    code = _STOPPING_RUN.format(source=str(zoo.folder("llama")), out=str(out))
    with Child(code) as run:
        wait_until(lambda: run.stdout == "writing\n", run)
        run.send_signal(number)
        assert run.wait() != 0
    after = load(out)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(after) == set(before)
    left = [name for name in os.listdir(tmp_path) if name != "moe"]
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    written(plan(overwrite=True), out)
    assert os.listdir(tmp_path) == ["moe"]


def test_a_tensor_larger_than_a_chunk_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHUNK", 100)
    source = open_checkpoint(zoo.folder("llama"))
    name = "model.embed_tokens.weight"
    shape = source.tensors[name].shape
    cast = OutTensor("a", "a", (), shape, "bfloat16", "kept", (Block(shape, (Read("base", name),)),))
    seen: list[int] = []
    writer.write_tensors(tmp_path, [cast], {"base": source}, seed=0, max_shard_bytes=10**9, progress=seen.append)
    assert torch.equal(load(tmp_path)["a"], source.read(name).bfloat16())
    assert sum(seen) == cast.nbytes
    assert len(seen) > 100


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_without_torch_is_torch_s(dtype: str) -> None:
    """Ties, subnormals and negative zero included."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(20_000) * 10.0 ** rng.integers(-6, 3, 20_000)).astype(np.float32)
    ties = np.array([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -(1 + 3 * 2**-11), 1e-41], dtype=np.float32)
    values = np.concatenate([values, ties])
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    ours = torch.frombuffer(bytearray(writer._numpy_bytes(values, dtype)), dtype=getattr(torch, dtype))
    assert torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))


def test_copies_need_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Their import takes longer than the conversion of a small model."""
    code = (
        "import sys; sys.argv = ['smolmoe', 'upcycle', *sys.argv[1:], '--verify', 'none']\n"
        "from smolmoe.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    source = tmp_path / "bf16"
    zoo.build("llama").bfloat16().save_pretrained(source)
    tokenizer = zoo.folder("llama") / "tokenizer.json"
    (source / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path / "moe")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
