"""The model and the machine of a specialisation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolmoe.recipe import UpcycleRecipe


@dataclass(frozen=True)
class Machine:
    """Where it runs.

    Attributes:
        memory: bytes that are free on the device.
        disk: bytes that are free where the output goes.
        threads, cores: of the CPU.
    """

    device: str
    name: str
    memory: int
    disk: int
    threads: int
    cores: int
    bf16: bool

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


def this_machine(out: Path) -> Machine:
    """This machine, on its fastest device."""
    import torch

    from smolmoe.core.devices import device_name, pick_device
    from smolmoe.core.machine import free_disk, free_memory
    from smolmoe.training.arguments import bf16_is_fast

    device = pick_device("auto")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = device_name(device)
    return Machine(
        device, name, free_memory(device), free_disk(out), torch.get_num_threads(), cores, bf16_is_fast(device)
    )


@dataclass(frozen=True)
class Subject:
    """The dense model, and the MoE that it becomes.

    Attributes:
        dense: its parameters.
        total, active: the MoE's.
        experts: its number of experts.
        model_class: the MoE's.
        nbytes: of the MoE's files.
        context: the most tokens of a sequence.
        vocabulary, hidden, layers: of both.
        warnings: what the user should know of the conversion.
    """

    folder: Path
    dense: int
    total: int
    active: int
    experts: int
    model_class: str
    nbytes: int
    context: int
    vocabulary: int
    hidden: int
    layers: int
    warnings: tuple[str, ...]


def study(recipe: UpcycleRecipe) -> Subject:
    """The sizes of a conversion, from configs and headers: no weight is read.

    Raises:
        SmolmoeError: no such model, or one that cannot be converted as asked.
    """
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.moe.loading import Skeleton
    from smolmoe.surgery.plan import make_plan

    checkpoint = open_checkpoint(recipe.source, revision=recipe.revision, field="model")
    plan = make_plan(recipe, checkpoint, {})
    config: Any = Skeleton(checkpoint.folder).model.config.get_text_config()
    return Subject(
        folder=checkpoint.folder,
        dense=plan.dense_parameters.total,
        total=plan.parameters.total,
        active=plan.parameters.active,
        experts=plan.layout.experts,
        model_class=plan.target.architecture,
        nbytes=plan.nbytes,
        context=getattr(config, "max_position_embeddings", None) or 2048,
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        warnings=plan.warnings,
    )
