"""The plan as an object: its blocks tile every tensor, in memory and on disk, and everything is read off it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import zoo
from tests.surgery.test_request import plan

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"granularity": 4, "experts": 8, "top_k": 4}),
    ("llama", {"shared": "full", "target": "glm4_moe"}),
    ("llama", {"shared": 16, "granularity": 2}),
    ("llama", {"shared": "residual", "target": "qwen2_moe", "layers": "1"}),
    ("llama_mlp_bias", {"shared": 16}),
    ("gpt2", {"shared": "full", "granularity": 2}),
    ("phi3", {"granularity": 3, "experts": 6, "top_k": 3}),
    ("olmo2", {}),
]


@pytest.mark.parametrize(("name", "options"), REQUESTS)
def test_memory_is_covered_exactly_once_and_is_the_class(name: str, options: dict[str, Any]) -> None:
    """The regions of the program, laid into the loaded class's parameters, fill each entry once and leave none out."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from smolmoe.moe.generic import SmolMoeConfig, SmolMoeForCausalLM

    made = plan(name, **options)
    values = {key: value for key, value in made.config.items() if key not in ("model_type", "auto_map")}
    with init_empty_weights():
        if made.target.name == "generic":
            model = SmolMoeForCausalLM(SmolMoeConfig(**values))
        else:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(made.config["model_type"], **values))
    tied = set(model.all_tied_weights_keys)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items() if key not in tied}
    filled = {key: np.zeros(shape, dtype=np.int8) for key, shape in wanted.items()}
    for tensor in made.tensors:
        index = tuple(slice(*part) if isinstance(part, tuple) else part for part in tensor.region)
        assert filled[tensor.memory][index].shape == tensor.shape, tensor.name
        filled[tensor.memory][index] += 1
    assert all((count == 1).all() for count in filled.values())


@pytest.mark.parametrize(("name", "options"), REQUESTS)
def test_parameters_are_those_of_the_files(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    from smolmoe.core.checkpoint import open_checkpoint
    from smolmoe.surgery.convert import convert

    made = plan(name, **options, seed=3)
    object.__setattr__(made.recipe, "out", tmp_path / "moe")
    folder = convert(made)
    sizes = {key: int(np.prod(info.shape)) for key, info in open_checkpoint(folder).tensors.items()}
    assert made.parameters.total == sum(sizes.values())
    # An expert tensor's share is K/E whether experts stand alone or in a stack.
    experts = sum(
        size
        for key, size in sizes.items()
        if ".experts." in key or "block_sparse_moe.input" in key or "block_sparse_moe.output" in key
    )
    share = made.layout.top_k / made.layout.experts
    assert made.parameters.active == sum(sizes.values()) - experts + round(experts * share)


def test_active_parameters_by_hand() -> None:
    made = plan("llama", experts=8, top_k=2)
    ffn = 3 * zoo.D * zoo.F
    dense = made.dense_parameters.total
    assert made.parameters.total == dense + zoo.LAYERS * (7 * ffn + 8 * zoo.D)
    assert made.parameters.active == dense + zoo.LAYERS * (ffn + 8 * zoo.D)
    assert made.parameters.embedding == 300 * zoo.D


def test_claims() -> None:
    assert plan().claim.kind == "exact"
    assert plan(diversify="drop").claim.kind == "deviates"
    assert plan(diversify="noise", shared="full").claim.kind == "deviates"
    assert plan(diversify="noise", shared="residual").claim.kind == "exact"
    thirds = {"granularity": 3, "experts": 6, "top_k": 3}
    assert plan(**thirds).claim.kind == "exact"
    rounded = plan(**thirds, dtype="bfloat16").claim
    assert rounded.kind == "rounded"
    assert rounded.predicted_ffn_error is not None
    assert plan(granularity=2, dtype="bfloat16").claim.kind == "exact"
    other = str(zoo.folder("llama", seed=1))
    assert plan(expert={"a": other, "b": other}).claim.kind == "none"


def test_fresh_neurons_are_the_program_s_and_shared_by_gate_up_and_down() -> None:
    def perturbs(**options: Any) -> list[Any]:
        made = plan(diversify="drop", **options)
        named = {t.name: t for t in made.tensors}
        stem = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"
        return [named[stem.format(e, w)].blocks[0].perturb for e in (0, 1) for w in ("w1", "w3", "w2")]

    gate, up, down, other, *_ = (p.fresh(zoo.F, 0) for p in perturbs(drop_ratio=0.25))
    assert len(gate) == zoo.F // 4
    assert torch.equal(gate, up)
    assert torch.equal(gate, down)
    assert not torch.equal(gate, other)
    gate, up, *_ = (p.fresh(zoo.F, 0) for p in perturbs(drop_independent=True))
    assert not torch.equal(gate, up)
