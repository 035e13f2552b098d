"""The jobs that are killed: each makes its inputs, runs or goes on as a user would, and tells what came out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tests.alignment import runs as align_runs
from tests.training import runs as train_runs

from smolmoe.alignment.run import align
from smolmoe.distillation.run import cache_teacher
from smolmoe.recipe import parse
from smolmoe.recipe.teach import TeachRecipe
from smolmoe.surgery.export.run import export
from smolmoe.surgery.run import upcycle
from smolmoe.teacher.job import teach
from smolmoe.training.checkpoints import whole_checkpoints
from smolmoe.training.run import train

OUT = "out"
RANDOM = {
    "objective": {"load_balance": 0.01, "z_loss": 0.001},
    "routing": {"noise": "learned", "sample": True, "expert_dropout": 0.1, "temperature": 1.3},
}


@dataclass(frozen=True)
class Job:
    """One command.

    Attributes:
        inputs: makes what it reads, in a folder.
        go: starts in folder / "out", or goes on there; the way a user would after a kill.
        outcome: what must be the same however often it was killed.
        valid_at_any_time: what must hold of folder / "out" after any kill, given the outcome of an undisturbed run.
    """

    inputs: Callable[[Path], None]
    go: Callable[..., None]
    outcome: Callable[[Path], Any]
    valid_at_any_time: Callable[[Path, Any], None] = lambda folder, whole: None


def tensors(folder: Path) -> dict[str, bytes]:
    """Every tensor's bytes, and every other file but the record (which holds times)."""
    files = {name.name: name.read_bytes() for name in sorted(folder.iterdir()) if name.suffix in (".txt", ".jinja")}
    loaded = load_file(folder / "model.safetensors")
    return {**files, **{name: tensor.contiguous().view(-1).numpy().tobytes() for name, tensor in loaded.items()}}


def _whole_or_absent(folder: Path, whole: Any) -> None:
    assert not (folder / OUT).exists() or tensors(folder / OUT) == whole


# -- upcycle, export -------------------------------------------------------------------------------------------------


def _dense(folder: Path) -> None:
    train_runs.dense_folder(folder / "dense")


def _upcycle(folder: str, *_: Any) -> None:
    where = Path(folder)
    upcycle(where / "dense", where / OUT, experts=4, overwrite=(where / OUT).exists())


def _moe(folder: Path) -> None:
    align_runs.moe_folder(folder / "moe")


def _export(folder: str, *_: Any) -> None:
    where = Path(folder)
    export(where / "moe", where / OUT, "generic", overwrite=(where / OUT).exists())


# -- train, align ----------------------------------------------------------------------------------------------------


def _training(folder: Path) -> dict[str, Any]:
    steps = train_runs.trainer(max_steps=12, save_steps=3)
    return train_runs.recipe(folder, folder / "moe", **RANDOM, trainer=steps) | {"out": str(folder / OUT)}


def _train_inputs(folder: Path) -> None:
    train_runs.moe_folder(folder / "moe")
    train_runs.write_text(folder / "text.jsonl")


def _train(folder: str, *_: Any) -> None:
    where = Path(folder)
    if (where / OUT / "summary.json").is_file():
        return
    train(_training(where), resume="latest" if whole_checkpoints(where / OUT) else None)


def _run_outcome(folder: Path) -> Any:
    rows = train_runs.rows(folder / OUT, "step")
    return rows, tensors(folder / OUT / "model")


def _alignment(folder: Path) -> dict[str, Any]:
    steps = align_runs.trainer(max_steps=8, save_steps=2)
    return align_runs.recipe(folder, folder / "moe", "sft", trainer=steps) | {"out": str(folder / OUT)}


def _align_inputs(folder: Path) -> None:
    align_runs.moe_folder(folder / "moe")
    align_runs.write_pairs(folder / "pairs.jsonl")


def _align(folder: str, *_: Any) -> None:
    where = Path(folder)
    if (where / OUT / "summary.json").is_file():
        return
    align(_alignment(where), resume="latest" if whole_checkpoints(where / OUT) else None)


# -- distill, teach --------------------------------------------------------------------------------------------------


def _distill_inputs(folder: Path) -> None:
    train_runs.dense_folder(folder / "teacher")
    train_runs.write_text(folder / "text.jsonl", documents=60)


def _distill(folder: str, *_: Any) -> None:
    where = Path(folder)
    small = {"top_k": 5, "shard_tokens": 200, "batch_tokens": 160}
    cache_teacher(where / "teacher", str(where / "text.jsonl"), where / OUT, device="cpu", resume=True, **small)


def _cache_outcome(folder: Path) -> Any:
    files = sorted((folder / OUT).glob("shard-*/*"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _prompts(folder: Path) -> None:
    rows = (json.dumps({"prompt": f"p{number:03d}"}) + "\n" for number in range(40))
    (folder / "prompts.jsonl").write_text("".join(rows))


def _teach(folder: str, url: str) -> None:
    where = Path(folder)
    values = {"prompts": str(where / "prompts.jsonl"), "out": str(where / OUT), "base_url": url, "model": "m"}
    teach(parse(TeachRecipe, {**values, "concurrency": 4}), resume=True)


def _rows(folder: Path) -> Any:
    lines = (folder / OUT / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prompt"], row.get("response", row.get("text"))) for row in map(json.loads, lines)]


JOBS = {
    "upcycle": Job(_dense, _upcycle, lambda folder: tensors(folder / OUT), _whole_or_absent),
    "export": Job(_moe, _export, lambda folder: tensors(folder / OUT), _whole_or_absent),
    "train": Job(_train_inputs, _train, _run_outcome),
    "align": Job(_align_inputs, _align, _run_outcome),
    "distill": Job(_distill_inputs, _distill, _cache_outcome),
    "teach": Job(_prompts, _teach, _rows),
}
