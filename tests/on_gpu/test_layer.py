"""The experts on a GPU against the naive loop on the CPU: outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.moe.kernels.test_function import TOLERANCE, assert_close, inputs, make, naive, results
from tests.moe.test_on_fake_cuda import experts
from torch import nn

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"has_bias": True, "is_transposed": True},
    {"has_gate": False, "act": "gelu"},
)


def on(device: str, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(device) for tensor in given)


def at_home(found: dict[str, Any]) -> dict[str, Any]:
    return {name: None if tensor is None else tensor.cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("tokens", [1, 8, 9, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_outputs_and_gradients(kind: dict[str, Any], dtype: torch.dtype, tokens: int, device: str) -> None:
    module, (hidden, index, weights) = make(dtype=dtype, **kind), inputs(tokens, 2, 4, dtype=dtype)
    found = at_home(results(module.to(device), module, *on(device, (hidden, index, weights))))
    module.to("cpu", torch.float64)  # of the same rounded weights
    exact = results(lambda *x: naive(module, *x), module, hidden.double(), index, weights.double())
    expected = {name: None if tensor is None else tensor.to(found[name].dtype) for name, tensor in exact.items()}
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "sonicmoe"])
def test_stock_implementations_agree(implementation: str, device: str) -> None:
    """What the choice of ours chooses from."""
    from transformers.integrations.sonicmoe import is_sonicmoe_loadable

    if implementation == "sonicmoe" and not is_sonicmoe_loadable():
        pytest.skip("the sonic-moe kernels are not installed")
    module, given = make(size=64, width=64, dtype=torch.bfloat16), inputs(64, 2, 4, 64, dtype=torch.bfloat16)
    expected = results(lambda *x: naive(module, *x), module, *given)
    module.config._experts_implementation, module.config.hidden_act = implementation, "silu"
    found = results(module.to(device), module, *on(device, given))
    assert_close(at_home(found), expected, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("tokens", [8, 300])
def test_autocast(tokens: int, device: str) -> None:
    """Products in bf16, results and gradients in fp32."""
    module, given = make(), inputs(tokens, 2, 4)
    expected = results(lambda *x: naive(module, *x), module, *given)
    module.to(device)

    def call(*x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.partition(":")[0], torch.bfloat16):
            return module(*x)

    found = at_home(results(call, module, *on(device, given)))
    assert_close(found, expected, TOLERANCE[torch.bfloat16])
    assert (found["output"] - expected["output"]).abs().max() > 1e-6  # else nothing was lowered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_widths_that_grouped_products_refuse(dtype: torch.dtype, device: str) -> None:
    layer = experts(width=30)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -0.3, 0.3)
    layer.to(dtype)
    given = inputs(40, 2, 4, 32, dtype=dtype)
    expected = layer(*given)
    found = layer.to(device)(*on(device, given)).cpu()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [8, 64])
def test_compiled_without_a_graph_break(tokens: int, dtype: torch.dtype, device: str) -> None:
    module, given = make(dtype=dtype).to(device), on(device, inputs(tokens, 2, 4, dtype=dtype))
    backend = "aot_eager" if device == "cpu" else "inductor"
    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert_close(results(compiled, module, *given), results(module, module, *given), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_from_the_head(dtype: torch.dtype, device: str) -> None:
    """Of hidden states, without logits in memory; Liger's kernel where it is installed."""
    from smolmoe.moe.kernels.linear_cross_entropy import linear_cross_entropy

    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 32), torch.randn(200, 32) / 4
    labels = torch.randint(200, (40,)).masked_fill(torch.rand(40) < 0.3, -100)

    def run(where: str, as_dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [tensor.to(where, as_dtype).requires_grad_() for tensor in (hidden, weight)]
        loss = linear_cross_entropy(*leaves, labels.to(where))
        return [tensor.float().cpu() for tensor in (loss.detach(), *torch.autograd.grad(loss, leaves))]

    tolerance = 1e-4 if dtype == torch.float32 else 4e-2
    for found, expected in zip(run(device, dtype), run("cpu", torch.float32), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
