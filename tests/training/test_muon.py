"""Muon: the update of torch.optim.Muon for every expert's own matrices, AdamW for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, dense_gpt2, dense_llama, random_moe
from safetensors.torch import load_file
from tests.training.runs import dense_folder, moe_folder, recipe, rows, trainer
from torch import nn

from smolmoe.errors import RequestError
from smolmoe.moe.routing import find_routers
from smolmoe.surgery.run import upcycle
from smolmoe.training.distributed import check_optimizer
from smolmoe.training.muon import _MATRICES, Muon, muon_layouts
from smolmoe.training.optim import split_groups
from smolmoe.training.run import train

CONSTANT = {"lr_scheduler_type": "constant", "warmup_steps": 0, "bf16": False, "max_grad_norm": 0.0}
MUON = {"optim": "muon", **CONSTANT}


def expert_matrices(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """A parameter's matrices, by hand: one per expert, gate and up apart."""
    experts = list(tensor) if tensor.ndim == 3 else [tensor]
    fused = "gate_up_proj" in name or "input_linear" in name
    return [half for expert in experts for half in (expert.chunk(2) if fused else (expert,))]


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe", "granitemoeshared"])
def test_a_step_is_torchs_on_every_experts_own_matrix(kind: str) -> None:
    model = random_moe(kind)
    layouts = muon_layouts(model)
    optimizer = Muon(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    split_groups(optimizer, model, {}, {}, (), layouts)
    named = dict(model.named_parameters())
    own = {name: [nn.Parameter(m.detach().clone()) for m in expert_matrices(name, named[name])] for name in layouts}
    rest = {name: nn.Parameter(p.detach().clone()) for name, p in named.items() if name not in layouts}
    muon = torch.optim.Muon(
        [m for ms in own.values() for m in ms], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest.values(), lr=0.01, weight_decay=0.1, fused=True)
    torch.manual_seed(0)
    for _ in range(3):
        for name, parameter in named.items():
            parameter.grad = torch.randn_like(parameter)
            if name in rest:
                rest[name].grad = parameter.grad.clone()
            for matrix, grad in zip(own.get(name, ()), expert_matrices(name, parameter.grad), strict=False):
                matrix.grad = grad.clone()
        for one in (optimizer, muon, adamw):
            one.step()
    for name, parameter in named.items():
        for ours, theirs in zip(expert_matrices(name, parameter), own.get(name, ()), strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
        if name in rest:
            assert torch.equal(parameter, rest[name]), name


@pytest.mark.parametrize("kind", MOE_CONFIGS)
def test_matrices_of_the_layers_and_nothing_else(kind: str) -> None:
    model = random_moe(kind)
    layouts = muon_layouts(model)
    routers = {id(p) for _, router in find_routers(model) for p in router.parameters()}
    for name, parameter in model.named_parameters():
        special = any(
            word in name for word in ("embed", "lm_head", "norm", "bias", "conv1d", "conv.conv", "expert_gate")
        )
        is_left = special or id(parameter) in routers or parameter.ndim == 1
        assert (name in layouts) != is_left, name
        fused = name.endswith(("gate_up_proj", "input_linear.weight"))
        assert layouts.get(name) == (None if is_left else "rows" if fused else "whole")


def test_dense_models_too() -> None:
    assert set(muon_layouts(dense_llama()).values()) == {"whole"}
    assert len(muon_layouts(dense_llama())) == 2 * 7
    assert len(muon_layouts(dense_gpt2())) == 2 * 4


@pytest.mark.parametrize(
    ("layout", "gate"),
    [
        ("rows", lambda t: t[:, :3]),
        ("columns", lambda t: t[:, :, :4]),
        ("alternating rows", lambda t: t[:, ::2]),
        ("alternating columns", lambda t: t[:, :, ::2]),
    ],
)
def test_halves_are_views(layout: str, gate: Any) -> None:
    tensor = torch.arange(2.0 * 6 * 8).view(2, 6, 8)
    found = _MATRICES[layout](tensor)
    assert torch.equal(found[:, 0], gate(tensor))
    found.zero_()
    assert not tensor.any()


def test_an_expert_without_tokens_stays() -> None:
    """Its momentum, normalised, would move it at full speed."""
    weight = nn.Parameter(torch.randn(2, 8, 4))
    optimizer = Muon([{"params": [weight], "muon": "whole"}], lr=0.1, weight_decay=0.1)
    weight.grad = torch.randn(2, 8, 4)
    optimizer.step()
    before, momentum = weight.detach().clone(), optimizer.state[weight]["momentum_buffer"].clone()
    weight.grad[1] = 0
    optimizer.step()
    assert torch.equal(weight[1], before[1])
    assert torch.equal(optimizer.state[weight]["momentum_buffer"][1], momentum[1])
    assert not torch.equal(weight[0], before[0])


def test_a_run_learns_and_resumes_exactly(tmp_path: Path) -> None:
    moe = moe_folder(tmp_path / "moe")
    rates = {"routing": {"learning_rate": 0.002}, "expert_learning_rate": 0.004}
    longer = recipe(tmp_path, moe, **rates, trainer=trainer(max_steps=8, **MUON))
    whole = train({**longer, "out": str(tmp_path / "whole")})
    train({**longer, "trainer": trainer(max_steps=4, **MUON)})
    again = train(longer, resume="latest")
    assert rows(again.out, "step") == rows(whole.out, "step")
    losses = [row["loss"] for row in rows(whole.out, "held_out")]
    assert losses[-1] < losses[0] - 0.5
    state = torch.load(whole.out / "checkpoints" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    groups = {(group["muon"], round(group["lr"], 6)) for group in state["param_groups"]}
    assert groups == {("", 0.01), ("", 0.002), ("whole", 0.01), ("whole", 0.004), ("rows", 0.004)}


def test_momentum_is_carried_across_the_conversion(tmp_path: Path) -> None:
    """With copies the first step outside the experts is the dense model's; it is not with a fresh Muon."""
    dense = dense_folder(tmp_path / "dense")
    train(recipe(tmp_path, dense, trainer=trainer(max_steps=12, **MUON), out=str(tmp_path / "dense-run")))
    source = tmp_path / "dense-run" / "model"
    upcycle(source, tmp_path / "copy", experts=4, verify="none")
    carry = {"carry": {"optimizer": str(tmp_path / "dense-run")}}

    def step(model: Path, **changes: Any) -> dict[str, torch.Tensor]:
        values = recipe(tmp_path, model, trainer=trainer(max_steps=1, **MUON), **changes)
        values["data"]["skip"] = 48
        return load_file(train(values, overwrite=True).model / "model.safetensors")

    before = load_file(source / "model.safetensors")
    went = step(source, **carry)
    carried, fresh = step(tmp_path / "copy", **carry, routing={"freeze": 1}), step(tmp_path / "copy")
    kept = [name for name in before if "self_attn" in name]
    assert len(kept) == 8
    for name in kept:
        moved = (went[name] - before[name]).norm()
        assert (carried[name] - went[name]).norm() < 0.02 * moved, name
        assert (fresh[name] - went[name]).norm() > 0.2 * moved, name
    with pytest.raises(RequestError, match="with Muon, this one is with AdamW") as caught:
        train(recipe(tmp_path, tmp_path / "copy", **carry, trainer=trainer(**CONSTANT), out=str(tmp_path / "mixed")))
    assert caught.value.field == "carry.optimizer"


def test_sharded_parameters_are_refused() -> None:
    with pytest.raises(RequestError, match="sharded") as caught:
        check_optimizer("muon")
    assert "parallel: ddp" in str(caught.value.fix)


def test_it_takes_no_arguments_of_others(tmp_path: Path) -> None:
    options = trainer(optim="muon", optim_args="momentum=0.9")
    with pytest.raises(RequestError, match="muon takes no momentum"):
        train(recipe(tmp_path, dense_folder(tmp_path / "dense"), trainer=options))
