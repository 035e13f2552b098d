"""Files of a checkpoint that are gone, cut short, of something else: each is named, with what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.runs import moe_folder, recipe, rows, trainer
from transformers.trainer_pt_utils import safe_globals

from smolmoe.errors import CheckpointError, SmolmoeError
from smolmoe.training.checkpoints import write_manifest
from smolmoe.training.run import train

NAMES = (
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "optimizer_names.json",
    "rng_state.pth",
    "routers.safetensors",
    "run.json",
    "scheduler.pt",
    "trainer_state.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A recipe, and the folder of its run."""
    folder = tmp_path_factory.mktemp("finished")
    values = recipe(
        folder,
        moe_folder(folder / "moe"),
        trainer=trainer(max_steps=2, save_steps=1),
        evaluation={"tokens": 100, "every": 2},
        routing={"noise": "learned"},
    )
    run = train(values).out
    shutil.rmtree(run / "checkpoints" / "checkpoint-2")
    return values, run


@pytest.fixture
def run(tmp_path: Path, finished: tuple[dict[str, Any], Path]) -> tuple[dict[str, Any], Path]:
    """The same in a folder to spoil, and its only checkpoint."""
    values, whole = finished
    shutil.copytree(whole, tmp_path / "run")
    return {**values, "out": str(tmp_path / "run")}, tmp_path / "run" / "checkpoints" / "checkpoint-1"


def assert_refused(values: dict[str, Any], checkpoint: Path, file: str, said: str | None = None) -> None:
    """By the whole command, with the file's name, before anything is written."""
    before = {path: path.stat().st_mtime_ns for path in checkpoint.parent.parent.rglob("*")}
    with pytest.raises(SmolmoeError, match=said) as refused:
        train(values, resume=str(checkpoint))
    assert file in str(refused.value)
    assert {path: path.stat().st_mtime_ns for path in checkpoint.parent.parent.rglob("*")} == before


def test_the_list_is_of_all_that_is_resumed_from(run: Any) -> None:
    others = {"generation_config.json", "manifest.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in run[1].iterdir()} == {*NAMES, *others}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_not_what_was_written_is_found_by_its_checksum(run: Any, name: str) -> None:
    values, checkpoint = run
    content = bytearray((checkpoint / name).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / name).write_bytes(content)
    assert_refused(values, checkpoint, name, "checksum")


@pytest.mark.parametrize("content", [None, b"", b"\x80\x02}.", b'{"a": [1]}', b"[" * 100_000])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "config.json"])
def test_a_file_that_is_something_else_is_named(run: Any, name: str, content: bytes | None) -> None:
    """Its manifest agrees: a file that somebody has changed on purpose, or a checkpoint of an earlier version."""
    values, checkpoint = run
    (checkpoint / name).unlink()
    if content is not None:
        (checkpoint / name).write_bytes(content)
    write_manifest(checkpoint)
    if name in ("model.safetensors", "routers.safetensors") and content is not None:  # read with the model
        assert_refused(values, checkpoint, name)
    else:
        with pytest.raises(CheckpointError) as refused:
            train(values, resume="latest")
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("trainer_state.json", "global_step", "1"),
        ("trainer_state.json", "global_step", 7),
        ("trainer_state.json", "global_step", True),
        ("trainer_state.json", "best_global_step", [1]),
        ("trainer_state.json", "best_metric", "low"),
        ("trainer_state.json", "epoch", None),
        ("trainer_state.json", "log_history", {}),
        ("trainer_state.json", "log_history", [3]),
        ("trainer_state.json", "train_batch_size", None),
        ("trainer_state.json", "stateful_callbacks", {"a": 1}),
        ("trainer_state.json", "unknown", 1),
        ("run.json", "recipe", []),
        ("run.json", "data", None),
        ("run.json", "blocks_a_step", "4"),
        ("run.json", "schema_version", "x"),
        ("config.json", "hidden_size", "many"),
        ("config.json", "num_hidden_layers", None),
        ("config.json", "rope_parameters", 3),
    ],
)
def test_a_value_of_another_type_is_named(run: Any, name: str, key: str, value: Any) -> None:
    values, checkpoint = run
    found = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps({**found, key: value}))
    write_manifest(checkpoint)
    assert_refused(values, checkpoint, name)


def _entry(state: Any, **changes: Any) -> Any:
    return {**state, "state": {**state["state"], 0: {**state["state"][0], **changes}}}


def _group(state: Any, **changes: Any) -> Any:
    return {**state, "param_groups": [{**state["param_groups"][0], **changes}, *state["param_groups"][1:]]}


TORCH: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a list": ("optimizer.pt", lambda state: [state]),
    "no groups": ("optimizer.pt", lambda state: {**state, "param_groups": []}),
    "no state": ("optimizer.pt", lambda state: {**state, "state": {}}),
    "NaN": ("optimizer.pt", lambda state: _entry(state, exp_avg=state["state"][0]["exp_avg"] * torch.nan)),
    "another shape": ("optimizer.pt", lambda state: _entry(state, exp_avg_sq=torch.zeros(3))),
    "no tensor": ("optimizer.pt", lambda state: _entry(state, exp_avg=None)),
    "steps": ("optimizer.pt", lambda state: _entry(state, step=torch.zeros(3))),
    "a rate in words": ("optimizer.pt", lambda state: _group(state, lr="high")),
    "betas": ("optimizer.pt", lambda state: _group(state, betas=0.9)),
    "another setting": ("optimizer.pt", lambda state: _group(state, amsgrad="x")),
    "a schedule's step": ("scheduler.pt", lambda state: {**state, "last_epoch": 9}),
    "a schedule's rates": ("scheduler.pt", lambda state: {**state, "base_lrs": ["high"]}),
    "no schedule": ("scheduler.pt", lambda state: 3),
    "a generator": ("rng_state.pth", lambda state: {**state, "cpu": torch.zeros(3)}),
    "no generator": ("rng_state.pth", lambda state: {"cpu": state["cpu"]}),
}


@pytest.mark.parametrize("case", TORCH)
def test_a_state_of_something_else_is_named(run: Any, case: str) -> None:
    values, checkpoint = run
    name, change = TORCH[case]
    with safe_globals():
        state = torch.load(checkpoint / name, weights_only=True)
    torch.save(change(state), checkpoint / name)
    write_manifest(checkpoint)
    with pytest.raises(CheckpointError) as refused:
        train(values, resume=str(checkpoint))
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["model.safetensors", "routers.safetensors"])
@pytest.mark.parametrize("change", ["NaN", "shape", "gone"])
def test_weights_of_something_else_are_named(run: Any, name: str, change: str) -> None:
    values, checkpoint = run
    tensors = load_file(checkpoint / name)
    first = min(tensors)
    changes = {"NaN": tensors[first] * torch.nan, "shape": tensors[first].flatten()[:3].clone()}
    tensors = {key: value for key, value in tensors.items() if key != first}
    if change in changes:
        tensors[first] = changes[change]
    save_file(tensors, checkpoint / name, metadata={"format": "pt"})
    write_manifest(checkpoint)
    assert_refused(values, checkpoint, first if name == "model.safetensors" else name)


def test_rows_of_measurements_that_are_none_are_named(run: Any) -> None:
    """All but the last, which a kill may have cut short."""
    values, checkpoint = run
    file = Path(values["out"]) / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(["null", *lines]))
    with pytest.raises(CheckpointError, match="line 1 is not a row"):
        train(values, resume=str(checkpoint))
    file.write_text("\n".join([*lines[:-1], lines[-1][:5]]))
    assert [row["step"] for row in rows(train(values, resume=str(checkpoint)).out, "step")] == [1, 2]


def test_a_checkpoint_of_an_earlier_version_has_sizes_alone(run: Any) -> None:
    values, checkpoint = run
    (checkpoint / "run.json").unlink()
    write_manifest(checkpoint)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    sizes = {name: entry["bytes"] for name, entry in manifest.items()}
    (checkpoint / "manifest.json").write_text(json.dumps(sizes))
    assert train(values, resume="latest").summary["steps"] == 2
