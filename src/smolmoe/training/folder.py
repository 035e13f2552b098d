"""The folder of a training run: its content, protection against overwriting, and checks of a resumed run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smolmoe.core.contents import remove
from smolmoe.core.devices import facts, pick_device
from smolmoe.core.files import write_json, write_text
from smolmoe.core.provenance import SCHEMA_VERSION
from smolmoe.core.run_folder import is_ours, occupied
from smolmoe.data.same_tokenizer import tokenizer_hash
from smolmoe.errors import OutputError, RequestError, SourceError
from smolmoe.moe.loading import load_tokenizer
from smolmoe.recipe import AlignRecipe, TrainRecipe
from smolmoe.results.outcome import Outcome
from smolmoe.training.arguments import DEFAULTS
from smolmoe.training.checkpoints import FOLDER as CHECKPOINTS
from smolmoe.training.checkpoints import (
    PREFIX,
    find_checkpoint,
    has_checkpoints,
    remove_all,
    remove_empty,
    step_of,
    whole_checkpoints,
)
from smolmoe.training.metrics import FILE as METRICS
from smolmoe.training.saved_state import RUN, read_record

logger = logging.getLogger(__name__)

RECIPE = "recipe.yaml"
MODEL = "model"
BEST = "best"  # the model of the checkpoint with the lowest held-out loss
TOKENIZER = "tokenizer"
SUMMARY = "summary.json"
HELD_OUT = "held_out.json"  # the final losses, document by document
HELD_OUT_BEFORE = "held_out_before.json"  # those before the first step
ADAPTERS = "adapters"
TENSORBOARD = "runs"  # of transformers, in the run's folder
# Files of a run in addition to its checkpoints; everything else in its folder is the user's.
_WRITTEN = (MODEL, ADAPTERS, BEST, TOKENIZER, SUMMARY, HELD_OUT, HELD_OUT_BEFORE, METRICS, RECIPE)
_FIRST = {f".{RUN}.partial", TOKENIZER}  # may exist before `run.json`
_EVENTS = f"{TENSORBOARD}/*/events.out.tfevents.*"
ALL = (*_WRITTEN, RUN, _EVENTS, *(f"{CHECKPOINTS}/{name}" for name in (f"{PREFIX}*", f".{PREFIX}*.partial")))
BLOCKS = "sequences of a step, over all processes"
# Keys that a resumed run may change: they affect the length and the logging of the run, not the training itself.
_CHANGEABLE = (
    "out",
    "device",
    "evaluation.",
    "samples.",
    *(
        f"trainer.{name}"
        for name in ("max_steps", "num_train_epochs", "save_", "logging_", "report_to", "run_name", "project", "log_")
    ),
    "trainer.disable_tqdm",
    "trainer.dataloader_",
    # The number of processes may change, as long as the number of sequences per step does not.
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.ddp_",
    "parallel",
    "data.cache",
)
# Paths, which may have moved: the hashes of text and tokenizer are compared, and the model is in the checkpoint.
_PLACES = (".path", "tokenizer", "carry.optimizer", "distill.cache")


@dataclass(frozen=True)
class RunResult:
    """The output of a run.

    Attributes:
        out: the run folder.
        summary: as in `summary.json`.
        source: the model that was trained; None for a new one.
    """

    out: Path
    summary: dict[str, Any]
    source: str | None = None

    @property
    def model(self) -> Path:
        return self.out / MODEL

    @property
    def outcome(self) -> Outcome:
        """What the run changed: its measurements before and after."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.summary, "outcome": self.outcome.to_json()}


def check_there(out: Path, resume: str | None) -> None:
    """Raises CheckpointError if there is no folder to resume in.

    To be called before the lock creates the folder: an empty folder is a run that was killed early.
    """
    if resume is not None and not out.exists():
        find_checkpoint(out, resume)


def open_folder(
    recipe: TrainRecipe | AlignRecipe, resume: str | None, *, overwrite: bool, blocks_a_step: int
) -> Path | None:
    """The checkpoint to resume from, or None for a new run, for which the folder is then free.

    Nothing is changed yet: a wrong recipe must not destroy an existing run.

    Raises:
        OutputError: the folder contains a run that could be lost, or something else; the run to resume, or that of the
            checkpoint, was started with another recipe.
        CheckpointError: no such checkpoint, or one of its files cannot be used.
    """
    out = recipe.out
    checkpoint = _find(out, resume, overwrite=overwrite)
    if checkpoint is not None:
        for begun in _begun(out, checkpoint):
            _check_recipe(begun, _asked(recipe), blocks_a_step)
    return checkpoint


def _find(out: Path, resume: str | None, *, overwrite: bool) -> Path | None:
    if resume is not None:
        if resume == "latest" and _is_begun(out) and not has_checkpoints(out) and not (out / SUMMARY).is_file():
            logger.warning("%s: the run was stopped before its first checkpoint, so it starts again.", out)
            return None
        return find_checkpoint(out, resume)
    if not is_ours(out, "a run", RUN, leftovers=_FIRST):
        return None
    if not overwrite and ((out / SUMMARY).is_file() or whole_checkpoints(out)):
        state = "finished" if (out / SUMMARY).is_file() else "unfinished"
        fix = "Use `resume='latest'` to resume, `overwrite=True` to start over, or another folder with `out=...`"
        raise occupied(out, f"a run ({state})", fix)
    return None


def _is_begun(out: Path) -> bool:
    """Whether the folder contains a run, or one that was killed before it wrote `run.json`."""
    return out.is_dir() and ((out / RUN).is_file() or {path.name for path in out.iterdir()} <= _FIRST)


def begin(
    recipe: TrainRecipe | AlignRecipe, tokenizer: Any, *, data: str, blocks_a_step: int, checkpoint: Path | None
) -> None:
    """Record the request; check that a resumed run has the same text.

    Args:
        data: fingerprint of the text.
        checkpoint: to resume from; None for a new run, which replaces an existing one.

    Raises:
        OutputError: the existing run, or that of the checkpoint, was started with other text.
        CheckpointError: its record cannot be read.
    """
    out, asked = recipe.out, _asked(recipe)
    record = {"schema_version": SCHEMA_VERSION, "recipe": asked, "data": data, "blocks_a_step": blocks_a_step}
    record["device"] = facts(pick_device(recipe.device))
    if checkpoint is None:
        _check_tokenizer(out, tokenizer)
        _clear(out)
    else:
        for begun in _begun(out, checkpoint):
            if begun.record["data"] != data:
                raise OutputError(
                    "the data has changed since the run started.",
                    field="data",
                    value=data,
                    fix="Restore it, or start a new run in another folder.",
                )
    Path(os.path.realpath(out)).mkdir(
        parents=True, exist_ok=True
    )  # a link may lead to a folder that does not exist yet
    (out / SUMMARY).unlink(missing_ok=True)
    write_json(out / RUN, record)  # first: it marks the folder as a run's
    write_text(out / RECIPE, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
    tokenizer.save_pretrained(out / TOKENIZER)


def check_step(checkpoint: Path | None, steps: int) -> None:
    """Raises RequestError if the run would end before the checkpoint to resume from."""
    if checkpoint is not None and step_of(checkpoint) > steps:
        raise RequestError(
            f"the checkpoint is at step {step_of(checkpoint)}, but the run ends at step {steps}.",
            field="resume",
            value=str(checkpoint),
            fix="Resume from an earlier one, or raise trainer.max_steps.",
        )


def _clear(out: Path) -> None:
    """Delete a run's files, and nothing else; `run.json` stays until another replaces it."""
    remove_all(out)
    unfinished = (f".{name}.{suffix}" for name in _WRITTEN for suffix in ("partial", "smolmoe"))
    remove(out, *_WRITTEN, *unfinished, _EVENTS)
    for folder in (*(out / TENSORBOARD).glob("*"), out / TENSORBOARD):
        remove_empty(folder)


def _check_tokenizer(out: Path, tokenizer: Any) -> None:
    """Raises OutputError if there is no run, but a tokenizer other than this run's."""
    if (out / RUN).is_file() or not (out / TOKENIZER).is_dir():
        return
    try:
        found = load_tokenizer(out / TOKENIZER)
    except SourceError:  # incomplete
        return
    if found is not None and tokenizer_hash(found) != tokenizer_hash(tokenizer):
        raise OutputError(
            "contains a different tokenizer, which would be overwritten.",
            field="out",
            value=str(out / TOKENIZER),
            fix="Use a new folder.",
        )


def _asked(recipe: TrainRecipe | AlignRecipe) -> dict[str, Any]:
    asked = recipe.model_dump(mode="json")
    asked["trainer"] = {**DEFAULTS, **asked["trainer"]}
    return asked


@dataclass(frozen=True)
class _Begun:
    """The record of the run in the folder, or of a checkpoint's run.

    Attributes:
        field, place: of the record, for errors.
        may_differ: beginnings of keys that may differ.
    """

    record: dict[str, Any]
    field: str
    place: Path
    may_differ: tuple[str, ...] = _CHANGEABLE


def _begun(out: Path, checkpoint: Path) -> Iterator[_Begun]:
    if (out / RUN).is_file():
        yield _Begun(read_record(out / RUN), "out", out)
    if (checkpoint / RUN).is_file():
        is_own = checkpoint.resolve().parent.parent == out.resolve()
        # Another run may leave a checkpoint with a different schedule.
        may_differ = _CHANGEABLE if is_own else (*_CHANGEABLE, "trainer.lr_scheduler_kwargs")
        yield _Begun(read_record(checkpoint / RUN), "resume", checkpoint, may_differ)


def _check_recipe(begun: _Begun, asked: dict[str, Any], blocks_a_step: int) -> None:
    """Refuse to resume a run as another one."""
    before, now = _flat(begun.record["recipe"]), _flat(asked)
    now[BLOCKS] = blocks_a_step
    before[BLOCKS] = begun.record.get("blocks_a_step", blocks_a_step)
    changed = [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not key.startswith(begun.may_differ) and not key.endswith(_PLACES)
    ]
    if changed:
        said = ", ".join(f"{key}: {before.get(key)} there, {now.get(key)} here" for key in changed)
        raise OutputError(
            f"the run there was started with a different recipe ({said}).",
            field=begun.field,
            value=str(begun.place),
            fix="Resume with the same recipe, or use another folder.",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested plain data by their dotted paths."""
    if not isinstance(values, dict | list):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
