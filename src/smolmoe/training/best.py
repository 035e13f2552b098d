"""`best/`: the model of the checkpoint with the lowest held-out loss; `model/` is the last one."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json
from smolmoe.core.folders import move_into_place
from smolmoe.core.json_text import BAD_FILE, read_json, read_rows
from smolmoe.evaluation.held_out import DocumentLosses
from smolmoe.training.checkpoints import FOLDER, PREFIX, problem_of
from smolmoe.training.folder import BEST, HELD_OUT_BEFORE, MODEL
from smolmoe.training.metrics import FILE
from smolmoe.training.saved_state import MANIFEST, NAMES, RUN, STATE, TRAINING_STATE

logger = logging.getLogger(__name__)

# Files of a checkpoint that only resuming needs.
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
    """The losses before the first step; None if the run was moved, or measured other documents.

    An unreadable file counts as missing: it must not make a finished training fail.

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
    """The run's summary as of its best step.

    Args:
        step: the Trainer's best step, which it saved; None if it saves nothing.
        last: the run's last step.
        summary: of the complete run.
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
    """Write the folder of the best step's model; returns it, or None if that step has no complete checkpoint.

    Weights are hard links to those of `model/` or of the checkpoint, which may be deleted: they need no space until
    then. File systems without hard links get copies.

    Args:
        step: with the lowest held-out loss.
        last: the step of `model/`.
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
    """Link weights; copy files that a user may edit in place."""
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copy2(source, target)
