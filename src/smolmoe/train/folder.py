"""The folder of one training run: what is in it, who may write there, and whether a resumed run is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from smolmoe.devices import facts, pick_device
from smolmoe.errors import OutputError
from smolmoe.files import write_json
from smolmoe.provenance import SCHEMA_VERSION, check_schema
from smolmoe.recipe import AlignRecipe, TrainRecipe
from smolmoe.train.arguments import DEFAULTS
from smolmoe.train.checkpoints import find_checkpoint, whole_checkpoints

RUN = "run.json"  # what was asked, and of which data: a resumed run must agree
RECIPE = "recipe.yaml"
MODEL = "model"
BEST = "best"  # the model of the checkpoint with the lowest held-out loss
TOKENIZER = "tokenizer"
SUMMARY = "summary.json"
HELD_OUT = "held_out.json"  # the final losses, document by document
HELD_OUT_BEFORE = "held_out_before.json"  # those before the first step
BLOCKS = "sequences of a step, over all processes"
# What a resumed run may ask differently: it changes how long or how closely watched the run is, not what it does.
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
    # Other processes may go on, as long as the sequences of a step stay as many.
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.ddp_",
    "parallel",
    "data.cache",
)
# A folder may have been moved: the text's and the tokenizer's hash is compared, and the model is in the checkpoint.
_PLACES = (".path", "tokenizer", "carry.optimizer", "distill.cache")


def open_folder(out: Path, resume: str | None, *, overwrite: bool) -> Path | None:
    """The checkpoint to resume from, or None for a new run, which may then be written there.

    Nothing is changed yet: a recipe that turns out wrong must not cost the run that is there.

    Raises:
        OutputError: the folder holds a run that could be lost, or something else.
        CheckpointError: there is no such checkpoint.
    """
    if resume is not None:
        return find_checkpoint(out, resume)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RUN).is_file():
        raise OutputError(
            f"there is something else than a run (no {RUN} in it).",
            field="out",
            value=str(out),
            fix="Name a new folder.",
        )
    if not overwrite and ((out / SUMMARY).is_file() or whole_checkpoints(out)):
        state = "finished" if (out / SUMMARY).is_file() else "unfinished"
        raise OutputError(
            f"the folder holds a run ({state}).",
            field="out",
            value=str(out),
            fix="Go on with --resume latest, start over with --overwrite, or name another folder with --set out=...",
        )
    return None


def begin(recipe: TrainRecipe | AlignRecipe, tokenizer: Any, *, data: str, blocks_a_step: int, resumed: bool) -> None:
    """Write down what is asked; of a resumed run, see that it is the same.

    Args:
        data: fingerprint of the text.

    Raises:
        OutputError: the run there was begun with another recipe, or on other text.
    """
    out = recipe.out
    asked = recipe.model_dump(mode="json")
    asked["trainer"] = {**DEFAULTS, **asked["trainer"]}
    record = {"schema_version": SCHEMA_VERSION, "recipe": asked, "data": data, "blocks_a_step": blocks_a_step}
    record["device"] = facts(pick_device(recipe.device))
    if resumed and (out / RUN).is_file():
        found = json.loads((out / RUN).read_text(encoding="utf-8"))
        check_schema(found.get("schema_version"), out / RUN)
        _check_same(found, record, out)
    if not resumed:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / SUMMARY).unlink(missing_ok=True)
    tokenizer.save_pretrained(out / TOKENIZER)
    write_json(out / RUN, record)
    (out / RECIPE).write_text(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _check_same(found: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Refuse to resume a run as another one."""
    before, now = _flat(found["recipe"]), _flat(asked["recipe"])
    now[BLOCKS] = asked["blocks_a_step"]
    before[BLOCKS] = found.get("blocks_a_step", now[BLOCKS])
    changed = [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not key.startswith(_CHANGEABLE) and not key.endswith(_PLACES)
    ]
    if found["data"] != asked["data"] and not changed:
        raise OutputError(
            "the data is not what the run began with.",
            field="data",
            value=asked["data"],
            fix="Restore it, or start a new run in another folder.",
        )
    if changed:
        said = ", ".join(f"{key}: {before.get(key)} there, {now.get(key)} here" for key in changed)
        raise OutputError(
            f"the run there was begun with another recipe ({said}).",
            field="out",
            value=str(out),
            fix="Resume with the same recipe, or name another folder.",
        )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict | list):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
