"""Atomic checkpoints: written to a temporary place, listed in a manifest, renamed when complete."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from smolmoe.core import units
from smolmoe.core.files import write_json
from smolmoe.errors import CheckpointError, OutputError
from smolmoe.training.saved_state import (
    FIX,
    MANIFEST,
    NAMES,
    OPTIMIZER,
    RUN,
    STATE,
    check_checkpoint,
    check_optimizer_fits,
    crc32,
    read_json,
    read_manifest,
    read_state,
    using,
)

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
PREFIX = "checkpoint-"


def write_manifest(folder: Path) -> None:
    """Record size and checksum of every file of a checkpoint. The manifest is written last: it marks completion."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": crc32(path)} for path in files
    }
    write_json(folder / MANIFEST, entries)


def problem_of(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it is complete; contents are not checked."""
    try:
        files = read_manifest(folder)
    except CheckpointError:
        return f"it has no readable {MANIFEST}"
    for name, entry in files.items():
        path, size = folder / name, entry["bytes"]
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name, or from its state if it was renamed."""
    name = folder.name.removeprefix(PREFIX)
    step: int = int(name) if name.isdigit() else read_state(folder)["global_step"]
    return step


def _candidates(run: Path) -> list[Path]:
    """Folders with names of checkpoints, the oldest first."""
    found = (path for path in (run / FOLDER).glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())
    return sorted(found, key=step_of)


def has_checkpoints(run: Path) -> bool:
    """Whether a run has a checkpoint, complete or not."""
    return bool(_candidates(run))


def whole_checkpoints(run: Path) -> list[Path]:
    """The usable checkpoints of a run, the oldest first; a warning names the others."""
    found = []
    for path in _candidates(run):
        problem = problem_of(path)
        if problem is None:
            found.append(path)
        else:
            logger.warning("Skipping %s: %s.", path, problem)
    return found


def find_checkpoint(run: Path, which: str) -> Path:
    """The checkpoint to resume from, with its files checked.

    Args:
        which: latest, best (lowest held-out loss), or a folder.

    Raises:
        CheckpointError: no checkpoint, the named one is incomplete, or one of its files is not usable.
    """
    found = _find(run, which)
    check_checkpoint(found)
    return found


def _find(run: Path, which: str) -> Path:
    if which not in ("latest", "best"):
        folder = Path(which)
        problem = problem_of(folder) if folder.is_dir() else "no such folder"
        if problem is not None:
            raise CheckpointError(f"cannot be resumed from: {problem}.", field="resume", value=which, fix=FIX)
        return folder
    found = whole_checkpoints(run)
    if not found:
        there = "; ".join(f"{path.name}: {problem_of(path)}" for path in _candidates(run))
        raise CheckpointError(
            f"the run has no complete checkpoint{f' ({there})' if there else ''}.",
            field="resume",
            value=which,
            fix="Start it without `resume`.",
        )
    if which == "latest":
        return found[-1]
    best = best_step(found[-1])
    if best is None:
        raise CheckpointError(
            f"no best checkpoint is known: up to {found[-1].name} the run measured no held-out loss during training.",
            field="resume",
            value=which,
            fix="Use `resume='latest'`, or a checkpoint's folder.",
        )
    chosen = next((path for path in found if step_of(path) == best), None)
    if chosen is None:
        raise CheckpointError(
            f"the best checkpoint (step {best}) is missing.",
            field="resume",
            value=which,
            fix="Use `resume='latest'`.",
        )
    return chosen


def best_step(checkpoint: Path) -> int | None:
    """The step with the lowest held-out loss so far."""
    step: int | None = read_state(checkpoint)["best_global_step"]
    return step


def remove_old(run: Path, keep: int | None, best: int | None) -> None:
    """Delete all but the last `keep` checkpoints and the best one, and leftovers of interrupted writes."""
    _remove_partial(run)
    if keep is None:
        return
    for folder in _candidates(run)[: -max(1, keep)]:
        if step_of(folder) != best:
            shutil.rmtree(folder, ignore_errors=True)


def remove_all(run: Path) -> None:
    """Delete the checkpoints of a run."""
    _remove_partial(run)
    for folder in _candidates(run):
        shutil.rmtree(folder)
    remove_empty(run / FOLDER)


def remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()


def _remove_partial(run: Path) -> None:
    for partial in (run / FOLDER).glob(f".{PREFIX}*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def room_for(what: str, folder: Path) -> Iterator[None]:
    """Turn a failed write (mostly a full disk) into an error that says what was kept."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder.parent if folder.parent.exists() else Path()).free
        raise OutputError(
            f"{what} could not be written ({error}); {units.size(free)} are free there. "
            "Earlier checkpoints are complete.",
            field="out",
            value=str(folder),
            fix="Free some space, then use `resume='latest'`.",
        ) from error


class AtomicCheckpoints:
    """For a Trainer: its checkpoints go to a temporary place and are renamed when complete.

    Set `run_folder` before training, and `keep`: the number of last checkpoints to keep, None for all.
    """

    run_folder: Path
    keep: int | None
    args: Any
    state: Any
    optimizer: Any
    model: Any
    accelerator: Any
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
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._finish(self._staging / name, root / name)
        finally:
            if self.args.should_save:
                shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        self.accelerator.wait_for_everyone()

    def _finish(self, written: Path, place: Path) -> None:
        (written / "training_args.bin").unlink(missing_ok=True)  # pickled code; the recipe has the same information
        state = read_json(written / STATE, dict)
        if state["best_global_step"] == self.state.global_step:  # it names the temporary folder
            write_json(written / STATE, state | {"best_model_checkpoint": str(place)})
        write_json(written / NAMES, optimizer_names(self.model, self.optimizer))
        shutil.copyfile(self.run_folder / RUN, written / RUN)
        write_manifest(written)
        if place.exists():
            shutil.rmtree(place)
        written.rename(place)
        remove_old(self.run_folder, self.keep, self.state.best_global_step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        check_optimizer_fits(Path(checkpoint), self.model, self.optimizer, optimizer_names(self.model, self.optimizer))
        with using(Path(checkpoint) / OPTIMIZER):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]


def optimizer_names(model: Any, optimizer: Any) -> list[str]:
    """Names of the parameters in the order of the optimiser's state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
