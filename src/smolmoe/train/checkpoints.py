"""Checkpoints that are whole or not there: written beside their place, listed in a manifest, renamed when complete."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smolmoe import units
from smolmoe.errors import CheckpointError, OutputError
from smolmoe.files import write_json

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
PREFIX = "checkpoint-"
MANIFEST = "manifest.json"  # size of every file: what a crash of the machine cut short shows here
STATE = "trainer_state.json"  # of the Trainer: steps, the best of them, what was logged
NAMES = "optimizer_names.json"  # parameter names in the order of the optimiser's state
TRAINING_STATE = "routers.safetensors"  # what is trained and is no part of the model: learned noise


def write_manifest(folder: Path) -> None:
    """Record the size of every file of a checkpoint: its presence says that all were written."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    write_json(folder / MANIFEST, files)


def problem_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None where it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no readable {MANIFEST}"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def whole_checkpoints(run: Path) -> list[Path]:
    """The usable checkpoints of a run, the oldest first; others are named in a warning and left out."""
    found = []
    candidates = (path for path in (run / FOLDER).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())
    for path in sorted(candidates, key=step_of):
        problem = problem_of(path)
        if problem is None:
            found.append(path)
        else:
            logger.warning("Skipping %s: %s.", path, problem)
    return found


def find_checkpoint(run: Path, which: str) -> Path:
    """The checkpoint to resume from.

    Args:
        which: latest, best (lowest held-out loss), or a folder.

    Raises:
        CheckpointError: there is none, or the one named is not whole.
    """
    if which not in ("latest", "best"):
        folder = Path(which)
        problem = problem_of(folder) if folder.is_dir() else "there is no such folder"
        if problem is not None:
            raise CheckpointError(f"cannot be resumed from: {problem}.", field="resume", value=which)
        return folder
    found = whole_checkpoints(run)
    if not found:
        raise CheckpointError(
            "the run has no whole checkpoint.", field="resume", value=which, fix="Start it without --resume."
        )
    if which == "latest":
        return found[-1]
    best = best_step(found[-1])
    chosen = next((path for path in found if step_of(path) == best), None)
    if chosen is None:
        raise CheckpointError(
            f"the best checkpoint (step {best}) is not there.", field="resume", value=which, fix="Use --resume latest."
        )
    return chosen


def best_step(checkpoint: Path) -> int | None:
    """The step of the lowest held-out loss until then."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    step: int | None = state.get("best_global_step")
    return step


def remove_old(run: Path, keep: int | None, best: int | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one, and what interrupted writes left."""
    for partial in (run / FOLDER).glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    if keep is None:
        return
    found = sorted((p for p in (run / FOLDER).glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit()), key=step_of)
    for folder in found[: -max(1, keep)]:
        if step_of(folder) != best:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Turn a failed write (a full disk, above all) into an error that says what is still there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else Path()).free
        raise OutputError(
            f"{what} could not be written ({error}); {units.size(free)} are free there. "
            "What was written before it is whole.",
            field="out",
            value=str(folder),
            fix="Make room, then use --resume latest.",
        ) from error


class AtomicCheckpoints:
    """For a Trainer: its checkpoints go beside their place and are renamed into it when whole.

    Set `run_folder` before training, and `keep`: the number of last checkpoints that stay, None for all.
    """

    run_folder: Path
    keep: int | None
    args: Any
    state: Any
    optimizer: Any
    model: Any
    _staging: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.run_folder / FOLDER)

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        name = f"{PREFIX}{self.state.global_step}"
        root = self.run_folder / FOLDER
        self._staging = root / f".{name}.partial"
        best = self.state.best_global_step
        self.state.best_model_checkpoint = None if best is None else str(root / f"{PREFIX}{best}")
        try:
            with room_for(f"the checkpoint of step {self.state.global_step}", root):
                if self.args.should_save:
                    shutil.rmtree(self._staging, ignore_errors=True)
                    self._staging.mkdir(parents=True)
                self._barrier()
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
                self._barrier()
                if self.args.should_save:
                    self._finish(self._staging / name, root / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self._barrier()

    def _finish(self, written: Path, place: Path) -> None:
        (written / "training_args.bin").unlink(missing_ok=True)  # pickled code; the recipe says the same
        state = json.loads((written / STATE).read_text(encoding="utf-8"))
        if state["best_global_step"] == self.state.global_step:  # said to be where it was written
            write_json(written / STATE, state | {"best_model_checkpoint": str(place)})
        write_json(written / NAMES, optimizer_names(self.model, self.optimizer))
        write_manifest(written)
        if place.exists():
            shutil.rmtree(place)
        written.rename(place)
        remove_old(self.run_folder, self.keep, self.state.best_global_step)

    def _barrier(self) -> None:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()


def optimizer_names(model: Any, optimizer: Any) -> list[str]:
    """Names of the parameters in the order of the optimiser's state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def read_adam(run: Path) -> dict[str, dict[str, Any]]:
    """The Adam state that a run ended with: parameter name -> `exp_avg`, `exp_avg_sq`, `step`.

    Args:
        run: a run folder, or one of its checkpoints.

    Raises:
        CheckpointError: there is none, or its optimiser was no Adam.
    """
    import torch

    folder = run if (run / NAMES).is_file() else find_checkpoint(run, "latest")
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)["state"]
    if not state or "exp_avg_sq" not in next(iter(state.values())):
        raise CheckpointError(
            "holds no state of Adam.", field="carry.optimizer", value=str(run), fix="Train the dense model with AdamW."
        )
    return {names[index]: entry for index, entry in state.items()}
