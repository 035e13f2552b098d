"""The optimiser's state of a finished run, to be carried into another one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from smolmoe.errors import CheckpointError, RequestError
from smolmoe.surgery.moments import Moments
from smolmoe.training.checkpoints import find_checkpoint, whole_checkpoints
from smolmoe.training.saved_state import NAMES, OPTIMIZER, read_json, using


def read_moments(run: Path, *, muon: bool = False) -> dict[str, Moments]:
    """The last state of a run's optimiser, by parameter name.

    Muon's mean of gradients is `exp_avg`; it has no mean of their squares, and `exp_avg_sq` is NaN.

    Args:
        run: a run folder, or one of its checkpoints.
        muon: whether the state is for a run with Muon.

    Raises:
        CheckpointError: as `read_state_of`.
        RequestError: one of the two runs is with Muon, the other with AdamW.
    """
    states = read_state_of(run)
    was_muon = any("momentum_buffer" in state for state in states.values())
    if was_muon != muon:
        then, now = ("Muon", "AdamW") if was_muon else ("AdamW", "Muon")
        raise RequestError(
            f"that run was trained with {then}, this one is with {now}; their states differ.",
            field="carry.optimizer",
            value=str(run),
            fix="Use the same trainer.optim in both runs, or remove `carry`.",
        )
    return {name: _moments(state) for name, state in states.items()}


def _moments(state: dict[str, Any]) -> Moments:
    if "momentum_buffer" in state:
        mean = state["momentum_buffer"].float()
        return Moments(mean, torch.tensor(torch.nan).expand_as(mean), float(state["step"]))
    return Moments(state["exp_avg"].float(), state["exp_avg_sq"].float(), float(state["step"]))


def complete(moments: Mapping[str, Moments], by_muon: Collection[str]) -> dict[str, Moments]:
    """Without the parameters that Muon trained and AdamW trains now: they have no mean of squares and start from zero.

    Args:
        moments: by parameter name.
        by_muon: parameters that Muon would train.
    """
    return {
        name: moment for name, moment in moments.items() if name in by_muon or not bool(moment.exp_avg_sq.isnan().any())
    }


def read_state_of(run: Path) -> dict[str, dict[str, Any]]:
    """The last state of a run's optimiser: parameter name -> `step` and `exp_avg`, `exp_avg_sq` or `momentum_buffer`.

    Args:
        run: a run folder, or one of its checkpoints.

    Raises:
        CheckpointError: no checkpoint, one of its files was changed, or its optimiser was neither Adam nor our Muon.
    """
    if not (run / NAMES).is_file() and not whole_checkpoints(run):
        raise CheckpointError(
            "has no complete checkpoint, and so no state of an optimiser.",
            field="carry.optimizer",
            value=str(run),
            fix="Train the dense model with `trainer.save_strategy: steps` (the default).",
        )
    folder = find_checkpoint(run, str(run) if (run / NAMES).is_file() else "latest")
    names = read_json(folder / NAMES, list)
    with using(folder / OPTIMIZER):
        state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)["state"]
    known = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum_buffer"})
    if not state or not all(any(keys <= entry.keys() for keys in known) for entry in state.values()):
        raise CheckpointError(
            "has no Adam state.", field="carry.optimizer", value=str(run), fix="Train the dense model with AdamW."
        )
    return {names[index]: entry for index, entry in state.items()}
