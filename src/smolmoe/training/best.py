"""`best/`: the model of a run's checkpoint with the lowest held-out loss, as `model/` is the last."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.core.files import write_json
from smolmoe.core.folders import move_into_place
from smolmoe.core.json_text import BAD_FILE, read_json, read_rows
from smolmoe.training.checkpoints import FOLDER, PREFIX, problem_of
from smolmoe.training.folder import BEST, HELD_OUT_BEFORE, MODEL
from smolmoe.training.metrics import FILE
from smolmoe.training.saved_state import MANIFEST, NAMES, RUN, STATE, TRAINING_STATE

if TYPE_CHECKING:
    from smolmoe.evaluation.held_out import DocumentLosses

logger = logging.getLogger(__name__)

# Of a checkpoint, what only resuming needs.
_OF_TRAINING = {
    MANIFEST,
    NAMES,
    RUN,
    STATE,
    TRAINING_STATE,
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "training_args.bin",
}
_OF_ONE_FOLDER = {"README.md", "smolmoe.json"}  # written for each


def losses_before(run: Path, last: DocumentLosses) -> DocumentLosses | None:
    """The losses before the first step; None where the run began elsewhere, or measured other documents then.

    A file that says nothing of use is none: a run that is trained must not fail by it.

    Args:
        last: those at the end.
    """
    file = run / HELD_OUT_BEFORE
    try:
        found = type(last).from_json(read_json(file))
    except FileNotFoundError:
        return None
    except (*BAD_FILE, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s), so the loss before is not shown.", file, error)
        return None
    return found if found.tokens == last.tokens else None


def find_best(run: Path, step: int | None, last: int, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The run's summary as if it had ended at its best step.

    Args:
        step: the Trainer's best, which it saved; None where it saves nothing.
        last: the run's last step.
        summary: of the whole run.
    """
    rows = {row["step"]: row for row in read_rows(run / FILE) if row["kind"] == "held_out" and row["step"]}
    if step not in rows:
        step = min(rows, key=lambda step: float(rows[step]["loss"]), default=last)
    if step == last or step is None:
        return {**summary, "steps": last}
    held_out = {**summary["held_out"], "loss": rows[step]["loss"], "by_domain": rows[step]["by_domain"]}
    tokens, flops = round(summary["tokens"] * step / last), summary["flops"] * step / last
    return {**summary, "steps": step, "held_out": held_out, "tokens": tokens, "flops": flops}


def write_best(run: Path, step: int, last: int, provenance: Mapping[str, Any]) -> Path | None:
    """Write the folder of the best step's model; returns it, or None where that step has no whole checkpoint.

    Weights are hard links to those of `model/` or of the checkpoint, which may be deleted: they take no room of their
    own until then. Where the file system has no such links they are copied.

    Args:
        step: with the lowest held-out loss.
        last: whose model is in `model/`.
        provenance: for its `smolmoe.json`.
    """
    partial = run / f".{BEST}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    source = run / MODEL if step == last else run / FOLDER / f"{PREFIX}{step}"
    if step != last and problem_of(source) is not None:
        shutil.rmtree(run / BEST, ignore_errors=True)  # of an earlier end of the run
        return None
    partial.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in _OF_TRAINING | _OF_ONE_FOLDER and not path.name.startswith("rng_state"):
            _link_or_copy(path, partial / path.name)
    write_json(partial / "smolmoe.json", {**provenance, "checkpoint": step})
    move_into_place(partial, run / BEST)
    return run / BEST


def _link_or_copy(source: Path, target: Path) -> None:
    """Link weights; what a user may edit in place is copied."""
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copy2(source, target)
