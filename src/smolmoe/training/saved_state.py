"""Checks of the files that a run resumes from; errors name the file that cannot be used."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState
from transformers.trainer_pt_utils import safe_globals

from smolmoe.core.json_text import TYPES, read_object, type_name
from smolmoe.core.provenance import check_schema
from smolmoe.errors import CheckpointError, SmolmoeError
from smolmoe.moe.control import load_state, saved_state

MANIFEST = "manifest.json"  # size and checksum of every file, to find truncated ones
RUN = "run.json"  # recipe and data: a resumed run must have the same
STATE = "trainer_state.json"  # of the Trainer: steps, best step, logs
NAMES = "optimizer_names.json"  # parameter names in the order of the optimiser's state
TRAINING_STATE = "routers.safetensors"  # trained, but not part of the model: learned noise
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
FIX = "Resume from another checkpoint of the run (`resume=FOLDER`), or start over with `overwrite=True`."
_CHUNK = 1 << 24
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_NEEDED: tuple[tuple[str, ...], ...] = (
    (STATE,),
    (OPTIMIZER,),
    (NAMES,),
    (SCHEDULER,),
    ("rng_state.pth", "rng_state_*.pth"),
    _WEIGHTS,
)
_NUMBER = (int, float)
# The Trainer's state: each key and its allowed types.
_STATE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("global_step", "max_steps", "num_train_epochs"), (int,)),
    **dict.fromkeys(("epoch", "logging_steps", "save_steps", "eval_steps", "total_flos"), _NUMBER),
    "num_input_tokens_seen": (int,),
    **dict.fromkeys(("best_metric",), (*_NUMBER, type(None))),
    "train_batch_size": (int,),
    "best_global_step": (int, type(None)),
    "best_model_checkpoint": (str, type(None)),
    "log_history": (list,),
    "stateful_callbacks": (dict,),
}
_ADAM = ("step", "exp_avg", "exp_avg_sq")
_MUON = ("step", "momentum_buffer")
# Tensor of the optimiser's state -> its shape, from the parameter's shape.
_SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    **dict.fromkeys(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"), lambda shape: shape),
    "step": lambda shape: (),
    "exp_avg_sq_row": lambda shape: shape[:-1],
    "exp_avg_sq_col": lambda shape: shape[:-2] + shape[-1:],
}


def wrong(file: Path, problem: str) -> NoReturn:
    """Raise CheckpointError for a file that cannot be used."""
    raise _error(file, problem)


def _error(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{file.name} {problem}.", field="resume", value=str(file), fix=FIX)


@contextmanager
def using(file: Path) -> Iterator[None]:
    """Within, any error becomes a CheckpointError for this file."""
    try:
        yield
    except SmolmoeError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # torch, safetensors, zipfile and pickle raise all kinds
        lines = str(error).strip().splitlines()
        wrong(file, f"cannot be used ({type(error).__name__}: {lines[0][:200] if lines else 'no reason given'})")


def read_json(file: Path, kind: type) -> Any:
    """A JSON file of a run, of this type.

    Raises:
        CheckpointError: it is missing, or of another type.
    """
    return read_object(file, kind, field="resume", fix=FIX)


def read_record(file: Path) -> dict[str, Any]:
    """The record of a run: its `run.json`.

    Raises:
        CheckpointError: it cannot be read, or is of another schema.
    """
    found: dict[str, Any] = read_json(file, dict)
    check_schema(found.get("schema_version"), file)
    for key, kind in (("recipe", dict), ("data", str), ("blocks_a_step", int)):
        if not isinstance(found.get(key), kind) and (key in found or key != "blocks_a_step"):
            wrong(file, f"holds {type_name(found.get(key))} for {key!r} instead of {TYPES[kind]}")
    return found


def read_state(folder: Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint.

    Raises:
        CheckpointError: it cannot be read, or a value has the wrong type.
    """
    file = folder / STATE
    found: dict[str, Any] = read_json(file, dict)
    for key, kinds in _STATE_TYPES.items():
        value = found.get(key)
        if not isinstance(value, kinds) or isinstance(value, bool):
            wrong(file, f"holds {type_name(value)} for {key!r}")
        if isinstance(value, _NUMBER) and not (math.isfinite(value) and value >= 0):
            wrong(file, f"holds {value} for {key!r}")
    if not all(isinstance(entry, dict) for entry in found["log_history"]):
        wrong(file, "has something other than entries in 'log_history'")
    with using(file):
        TrainerState.load_from_json(str(file))
        TrainerControl(**found["stateful_callbacks"]["TrainerControl"]["args"])
    return found


def check_checkpoint(folder: Path) -> None:
    """Check that the files of a checkpoint exist, are unchanged, and have valid contents.

    Raises:
        CheckpointError: naming the file.
    """
    _check_manifest(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        if (folder / name).is_file():
            read_json(folder / name, dict)
    for names in _NEEDED:
        if not any(True for name in names for _ in folder.glob(name)):
            wrong(folder / names[0], "is missing")
    step, name = read_state(folder)["global_step"], folder.name.removeprefix("checkpoint-")
    if name.isdigit() and int(name) != step:
        wrong(folder / STATE, f"is from step {step}")
    names = read_json(folder / NAMES, list)
    if not all(isinstance(name, str) for name in names):
        wrong(folder / NAMES, "contains something other than names")
    _check_optimizer(folder / OPTIMIZER, names)
    _check_scheduler(folder / SCHEDULER, step)
    for file in folder.glob("rng_state*.pth"):
        _check_generators(file)


def _check_manifest(folder: Path) -> None:
    entries = read_manifest(folder)
    if any("crc32" in entry for entry in entries.values()) and not (folder / RUN).is_file():
        wrong(folder / RUN, "is missing")
    for name, entry in entries.items():
        checksum = entry.get("crc32")
        if checksum is not None and crc32(folder / name) != checksum:
            wrong(folder / name, "was changed: its checksum differs")


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """`bytes` and `crc32` of each file of a checkpoint; earlier versions wrote no checksums.

    Raises:
        CheckpointError: it cannot be read.
    """
    found = {}
    for name, entry in read_json(folder / MANIFEST, dict).items():
        found[name] = {"bytes": entry} if isinstance(entry, int) else entry
        if not isinstance(found[name], dict) or not isinstance(found[name].get("bytes"), int):
            wrong(folder / MANIFEST, f"holds {type_name(entry)} for {name!r}")
    return found


def crc32(file: Path) -> int:
    found = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, pickle and torch raise many kinds
        raise _error(file, "is damaged: torch cannot read it") from error


def _check_optimizer(file: Path, names: Sequence[str]) -> None:
    found = _load(file)
    state, groups = (found.get(key) for key in ("state", "param_groups")) if isinstance(found, dict) else (None, None)
    if not isinstance(state, dict) or not isinstance(groups, list):
        wrong(file, "contains no optimiser state")
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        wrong(file, "contains groups without parameters")
    count = sum(len(group["params"]) for group in groups)
    if count != len(names):
        wrong(file, f"has {count} parameters, but {NAMES} has {len(names)}")
    for group in groups:
        bad = next((key for key, value in group.items() if _is_number(value) and not _is_finite(value)), None)
        if bad is not None or not _is_number(group.get("lr")):
            wrong(file, f"holds {_shown(group.get(bad or 'lr'))} for {bad or 'lr'!r} of a group")
    for index, entry in state.items():
        if not isinstance(entry, dict) or not isinstance(index, int) or not 0 <= index < count:
            wrong(file, f"has something other than a parameter's state at {index!r}")
        for key, value in entry.items():
            if _is_number(value) and not _is_finite(value):
                wrong(file, f"holds NaN or Inf in {key!r} of {names[index]}")


def _check_scheduler(file: Path, step: int) -> None:
    found = _load(file)
    if not isinstance(found, dict) or not isinstance(found.get("last_epoch", 0), int):
        wrong(file, "contains no schedule state")
    if found.get("last_epoch", step) > step:
        wrong(file, f"is from step {found['last_epoch']}")
    for key in ("base_lrs", "_last_lr"):
        rates = found.get(key, [])
        if not isinstance(rates, list) or not all(_is_finite(rate) for rate in rates):
            wrong(file, f"holds {_shown(rates)} for {key!r}")


def _check_generators(file: Path) -> None:
    with using(file):
        with safe_globals():
            found = torch.load(file, map_location="cpu", weights_only=True)
        random.Random().setstate(found["python"])
        np.random.RandomState().set_state(found["numpy"])
        torch.Generator().set_state(found["cpu"])


def check_optimizer_fits(folder: Path, model: Any, optimizer: Any, names: Sequence[str]) -> None:
    """Check that an optimiser's state fits this model's parameters.

    Args:
        names: of the parameters in the order of the optimiser's groups.

    Raises:
        CheckpointError: naming the parameter.
    """
    if read_json(folder / NAMES, list) != list(names):
        wrong(folder / NAMES, "does not match the trained parameters")
    file = folder / OPTIMIZER
    found = _load(file)
    sizes = [len(group["params"]) for group in found["param_groups"]]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        wrong(file, "groups the parameters differently")
    for saved, group in zip(found["param_groups"], optimizer.param_groups, strict=True):
        for key, value in group.items():
            if key != "params" and (key not in saved or _kind(saved[key]) != _kind(value)):
                wrong(file, f"holds {_shown(saved.get(key))} for {key!r} of a group")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if not found["state"] and _is_adam(optimizer):
        wrong(file, "lacks the state of a parameter")
    by_muon = [bool(group.get("muon")) for group in found["param_groups"] for _ in group["params"]]
    for index, entry in found["state"].items():
        for key in _MUON if by_muon[index] else _ADAM if _is_adam(optimizer) else ():
            if not hasattr(entry.get(key), "shape"):
                wrong(file, f"holds {_shown(entry.get(key))} for {key!r} of {names[index]}")
        for key, shape_of in _SHAPES.items():
            value, shape = entry.get(key), shapes[names[index]]
            if value is not None and tuple(getattr(value, "shape", ())) != shape_of(shape):
                wrong(file, f"holds {_shown(value)} for {key!r} of {names[index]}, whose shape is {list(shape)}")


def _is_adam(optimizer: Any) -> bool:
    return isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.Adam)  # AdamW among them


def model_of(folder: Path, load: Callable[[], Any]) -> Any:
    """The model that `load` loads from a checkpoint.

    Raises:
        SmolmoeError: it cannot be loaded; CheckpointError: a weight is NaN or Inf.
    """
    with using(folder / "config.json"):
        model = load()
    check_finite(model, folder)
    return model


def check_finite(model: Any, folder: Path) -> None:
    """Check that no weight of a model that was loaded from a checkpoint is NaN or Inf.

    Raises:
        CheckpointError: naming the tensor.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta and not bool(parameter.detach().isfinite().all()):
            raise CheckpointError(f"the weights hold NaN or Inf in {name}.", field="resume", value=str(folder), fix=FIX)


def load_training_state(model: Any, folder: Path) -> None:
    """Load the trained state that is not part of the model.

    Raises:
        CheckpointError: it is missing, or is of another model.
    """
    file = folder / TRAINING_STATE
    if not file.is_file():
        if saved_state(model):
            wrong(file, "is missing")
        return
    with using(file):
        state = load_file(file)
    bad = next((name for name, tensor in state.items() if not bool(tensor.isfinite().all())), None)
    if bad is not None:
        wrong(file, f"holds NaN or Inf in {bad}")
    try:
        load_state(model, state)
    except CheckpointError as error:
        wrong(file, f"is from a different model or intervention ({error.value})")


# -- kinds of values -------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"a tensor of shape {list(shape)}" if shape is not None else repr(value)[:80]


def _kind(value: Any) -> Any:
    """The kind of a value of an optimiser's group; a setting must be equal, a number may differ."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return repr(value)
    if _is_number(value):
        return "number"
    return tuple(_kind(one) for one in value) if isinstance(value, list | tuple) else type(value).__name__


def _is_number(value: Any) -> bool:
    return (isinstance(value, _NUMBER) and not isinstance(value, bool)) or hasattr(value, "isfinite")


def _is_finite(value: Any) -> bool:
    if not _is_number(value):
        return False
    return bool(value.isfinite().all()) if hasattr(value, "isfinite") else math.isfinite(value)
