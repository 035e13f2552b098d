"""Whole models on a GPU against the CPU: logits, choices of experts, checkpointing, generation, offloaded experts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import MOE_CONFIGS, VOCABULARY, random_moe
from tests.training.runs import moe_folder

import smolmoe
from smolmoe.inference.generate import generate_all
from smolmoe.inference.offload import offload_experts
from smolmoe.moe.gating import gate_spec, is_known, route, router_weight, selection_bias
from smolmoe.moe.kernels.register import set_experts
from smolmoe.moe.routing import RoutingCapture, find_routers, flipped
from smolmoe.verification.precision import full_precision

PROMPTS = ["def add(", "The sum of three and"]


def ids() -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", MOE_CONFIGS)
@torch.no_grad()
def test_logits_and_choices_are_those_of_the_cpu(kind: str, device: str) -> None:
    model = random_moe(kind)
    found = []
    for place in ("cpu", device):
        set_experts(model.to(place))
        with full_precision(), RoutingCapture(model) as capture:
            logits = model(input_ids=ids().to(place), use_cache=False).logits.cpu()
        found.append((logits, [capture.routing(layer) for layer in capture.layers]))
    (expected, here), (logits, there) = found
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    for a, b in zip(here, there, strict=True):
        assert not (a.chosen() != b.chosen().cpu()).any()


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("kind", MOE_CONFIGS)
@torch.no_grad()
def test_route_is_the_stock_router_to_the_bit(kind: str, lowered: bool, device: str) -> None:
    """Autocast has other rules on a GPU: sums and softmax are widened there."""
    router = find_routers(random_moe(kind))[-1][1].to(device)
    if not is_known(router) or getattr(router, "use_expert_bias", False):
        pytest.skip("its block passes the bias")
    x = torch.randn(50, router_weight(router).shape[-1]).to(device)
    with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=lowered):
        stock = type(router).forward(router, x)
        ours = route(x, router_weight(router), selection_bias(router), gate_spec(router))
    for a, b in zip(ours, stock, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_checkpointed_layers_keep_their_choices(device: str) -> None:
    from smolmoe.training.replay import remember_choices

    gradients = []
    for checkpointed in (False, True):
        model = random_moe("mixtral").to(device).train()
        set_experts(model)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
            remember_choices(model)
        given = ids().to(device)
        with torch.autocast(given.device.type, torch.bfloat16):
            model(input_ids=given, labels=given, use_cache=False).loss.backward()
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


@pytest.mark.parametrize("implementation", ["smolmoe", "grouped_mm", "batched_mm", "eager"])
@torch.no_grad()
def test_offloaded_experts_give_the_same_logits(implementation: str, device: str) -> None:
    smolmoe.register()
    model = random_moe("mixtral", num_hidden_layers=4)
    model.set_experts_implementation(implementation)
    whole = model.to(device)(input_ids=ids().to(device), use_cache=False).logits
    traffic = offload_experts(model.cpu(), device=device)
    out = model(input_ids=ids().to(device), use_cache=False).logits
    assert out.device.type == torch.device(device).type
    torch.testing.assert_close(out, whole, rtol=1e-5, atol=1e-5)
    assert traffic.moved_bytes
    assert {p.device.type for name, p in model.named_parameters() if ".experts." in name} == {"cpu"}


def test_generated_texts_are_those_of_the_cpu(tmp_path: Path, device: str) -> None:
    folder = moe_folder(tmp_path / "moe")
    asked = {"max_new_tokens": 12, "temperature": 0.0}
    expected = generate_all(folder, PROMPTS, **asked)
    for options in ({}, {"offload_experts": True}, {"batch_size": 1}):
        found = generate_all(folder, PROMPTS, device=device, **asked, **options)
        assert [one.texts for one in found] == [one.texts for one in expected], options
        assert (found[0].offload is not None) == bool(options.get("offload_experts"))


def test_sampling_leaves_the_global_generators_alone(tmp_path: Path, device: str) -> None:
    folder = moe_folder(tmp_path / "moe")
    torch.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.manual_seed(5)
    first, again = (generate_all(folder, PROMPTS, max_new_tokens=8, device=device, seed=1) for _ in range(2))
    assert [one.texts for one in first] == [one.texts for one in again]
    assert torch.equal(torch.rand(3, device=device), expected)


@torch.no_grad()
def test_bf16_chooses_nearly_the_same_experts(device: str) -> None:
    routings = []
    for dtype in (torch.float32, torch.bfloat16):
        model = random_moe("mixtral").to(device, dtype)
        set_experts(model)
        with RoutingCapture(model) as capture:
            model(input_ids=ids().to(device), use_cache=False)
        routings.append(capture.routing(0))
    assert flipped(*routings).float().mean() < 0.1
