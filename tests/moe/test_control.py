"""Interventions on whole models: attached, detached, folded, saved, checkpointed and measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MOE_CONFIGS, dense_llama, random_moe
from safetensors.torch import load_file
from tests.moe.dense import FAMILIES, build_dense, upcycle

from smolmoe.errors import CheckpointError, RequestError, TargetError
from smolmoe.moe.control import control_routers, load_state, measure_flips, saved_state, without_training_state
from smolmoe.moe.gating import Intervention
from smolmoe.moe.routing import RoutingCapture, find_routers

IDS = torch.arange(10, 74).view(2, 32)


def model_of(kind: str, **config: Any) -> Any:
    return (
        upcycle(build_dense(FAMILIES["llama"]), FAMILIES["llama"]) if kind == "generic" else random_moe(kind, **config)
    )


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize("kind", [*MOE_CONFIGS, "generic"])
def test_a_controlled_model_is_the_same_until_something_is_done(kind: str) -> None:
    model = model_of(kind)
    expected = logits_of(model)
    with RoutingCapture(model) as capture:
        model(IDS)
    control = control_routers(model.train(), Intervention())
    assert torch.equal(logits_of(model), expected)
    control.detach()
    control = control_routers(model, Intervention(noise=1.0))
    torch.manual_seed(0)
    assert not torch.equal(logits_of(model), expected)
    with RoutingCapture(model) as noisy:
        model(IDS)
    first = capture.layers[0]
    assert torch.equal(noisy.routing(first).logits, capture.routing(first).logits)  # clean ones
    assert not torch.equal(noisy.routing(first).indices, capture.routing(first).indices)
    assert torch.equal(logits_of(model.eval()), expected)
    control.detach()
    assert torch.equal(logits_of(model.train()), expected)
    assert not any("forward" in vars(router) for _, router in find_routers(model))


def test_logits_that_transformers_records_are_there_too() -> None:
    model = random_moe("mixtral").train()
    control_routers(model, Intervention(temperature=2.0, noise=1.0))
    with RoutingCapture(model) as capture:
        recorded = model(IDS, output_router_logits=True).router_logits
    for layer in capture.layers:
        assert torch.equal(capture.routing(layer).logits, recorded[layer])


def test_what_cannot_be_controlled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match="no routers"):
        control_routers(dense_llama(), Intervention())
    model = random_moe("mixtral")
    control = control_routers(model, Intervention())
    with pytest.raises(RequestError, match="already"):
        control_routers(model, Intervention())
    control.detach()
    with pytest.raises(RequestError, match="granularity"):
        control_routers(model, Intervention(granularity=4))
    router = type(find_routers(model)[0][1])
    stock = router.forward
    monkeypatch.setattr(router, "forward", lambda self, x: (lambda a, b, c: (a, b / 2, c))(*stock(self, x)))
    with pytest.raises(TargetError, match="does not compute"):
        control_routers(model, Intervention())


def test_a_deep_copy_routes_with_its_own_weights() -> None:
    model = random_moe("mixtral")
    control_routers(model, Intervention())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for _, router in find_routers(copied):
            router.weight.neg_()
    assert not torch.equal(logits_of(copied), logits_of(model))


@pytest.mark.parametrize("kind", ["mixtral", "glm4_moe", "granitemoeshared", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_temperature_is_folded_into_the_files(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model_of(kind).save_pretrained(tmp_path / "source")
    # Loaded in its type and not cast to it, which would round the rotary frequencies too.
    model = type(model_of(kind)).from_pretrained(tmp_path / "source", dtype=dtype).eval()
    control = control_routers(model, Intervention(temperature=1.7))
    tempered, before = logits_of(model), copy.deepcopy(model.state_dict())
    with control.folded():
        model.save_pretrained(tmp_path)
        assert torch.equal(logits_of(model), tempered)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert control.intervention.temperature == 1.7
    assert torch.equal(logits_of(model), tempered)
    reloaded = type(model).from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(logits_of(reloaded), tempered)
    control.fold()
    assert control.intervention.temperature == 1
    control.detach()
    assert torch.equal(logits_of(model), tempered)


def test_learned_noise_is_trained_and_resumed_but_not_saved(tmp_path: Path) -> None:
    model = random_moe("mixtral").train()
    ignored = set(model._keys_to_ignore_on_save)
    control = control_routers(model, Intervention(noise="learned", temperature=2.0))
    model(IDS, labels=IDS).loss.backward()
    noise = [router.noise_weight for _, router in find_routers(model)]
    assert all(weight.grad.any() for weight in noise)
    with torch.no_grad():
        for weight in noise:
            weight.normal_()
    assert len(model.state_dict()) - len(without_training_state(model.state_dict())) == 2
    with control.folded():
        model.save_pretrained(tmp_path)
    assert not any("noise" in name for name in load_file(tmp_path / "model.safetensors"))

    state = saved_state(model)
    assert sorted(state) == ["0.noise_weight", "0.weight", "1.noise_weight", "1.weight"]
    resumed = type(model).from_pretrained(tmp_path)
    control_routers(resumed, Intervention(noise="learned", temperature=2.0))
    load_state(resumed, state)
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    with pytest.raises(CheckpointError, match=r"0\.noise_weight"):
        load_state(random_moe("mixtral"), state)
    control.detach()
    assert saved_state(model) == {}
    assert len(without_training_state(model.state_dict())) == len(model.state_dict())
    assert set(model._keys_to_ignore_on_save) == ignored


@pytest.mark.parametrize("kind", ["mixtral", "granitemoeshared", "generic"])
def test_gradient_checkpointing_redraws_the_same(kind: str) -> None:
    model = model_of(kind).train()
    act = Intervention(noise="learned", sample=True, expert_dropout=0.3, temperature=1.5, fp32=True)
    control_routers(model, act)

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        with RoutingCapture(model) as capture:
            loss = model(IDS, labels=IDS, use_cache=False).loss
        assert len(capture.calls(0)) == 1
        (loss + capture.routing(0).logits.logsumexp(-1).square().mean()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    torch.manual_seed(1)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert model.is_activation_checkpointing
    actual = gradients()
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_flips_against_fp32_are_none_in_fp32_and_some_in_bf16() -> None:
    model = random_moe("mixtral", num_local_experts=16).train()
    batches = [
        {"input_ids": torch.randint(3, 300, (8, 64), generator=torch.Generator().manual_seed(i))} for i in range(2)
    ]
    assert measure_flips(model, batches) == 0
    with torch.autocast("cpu", torch.bfloat16):
        autocast = measure_flips(model, batches)
    weights = measure_flips(model.bfloat16(), batches)
    assert 0 < autocast < 0.1
    assert 0 < weights < 0.1
    assert model.training
    assert not any(router._forward_hooks for _, router in find_routers(model))
    control_routers(model, Intervention(temperature=3.0, noise=1.0))
    assert 0 < measure_flips(model, batches) < 0.1  # the tempered router against itself, without noise


def test_flips_do_not_count_padding() -> None:
    model = random_moe("mixtral", num_local_experts=16).bfloat16()
    ids = torch.randint(3, 300, (8, 64), generator=torch.Generator().manual_seed(0))
    assert measure_flips(model, [{"input_ids": ids}]) > 0
    assert measure_flips(model, [{"input_ids": ids, "attention_mask": torch.zeros_like(ids)}]) == 0
