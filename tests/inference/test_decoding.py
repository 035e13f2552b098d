"""Linear layers that take the kernel of the experts while text is generated, and what is left alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import VOCABULARY, dense_gpt2, dense_llama, random_moe
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from smolmoe import fast_decoding
from smolmoe.inference import decoding
from smolmoe.moe.kernels.native import FEW

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
needs_kernel = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what torch's own product was called with in linear layers that were taken over."""
    shapes: list[tuple[int, ...]] = []
    linear = nn.functional.linear

    def counted(x: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return linear(x, *others)

    monkeypatch.setattr(decoding.F, "linear", counted)
    return shapes


def linear(inputs: int = 64, outputs: int = 67, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


@needs_kernel
@pytest.mark.parametrize("dtype", FEW)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64), (1, 1, 64), (FEW[torch.float32], 64)])
def test_products_of_few_rows(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...], by_torch: list[tuple[int, ...]]
) -> None:
    layer = linear(bias=bias, dtype=dtype)
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        wanted = x.double() @ layer.weight.double().T
        wanted = wanted.to(dtype).double() + (layer.bias.double() if layer.bias is not None else 0)
        with fast_decoding(layer):
            out = layer(x)
            strided = layer(x[..., None].expand(*shape, 2)[..., 0])
    assert by_torch == []
    assert (out.shape, out.dtype) == (wanted.shape, dtype)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()
    assert torch.equal(strided, out)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (linear(), torch.randn(FEW[torch.float32] + 1, 64)),
        (linear(), torch.randn(0, 64)),
        (linear(60), torch.randn(2, 60)),
        (linear(64, 3), torch.randn(2, 64)),
        (linear(dtype=torch.float64), torch.randn(2, 64, dtype=torch.float64)),
    ],
)
def test_what_the_kernel_is_not_for_is_torchs(layer: nn.Linear, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = layer(x)
        with fast_decoding(layer):
            assert torch.equal(layer(x), wanted)
            with pytest.raises(RuntimeError, match="shape"):
                layer(torch.ones(2, 32, dtype=x.dtype))


def test_gradients_autocast_and_counters_see_torchs_products(by_torch: list[tuple[int, ...]]) -> None:
    layer, x = linear(), torch.randn(2, 64)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    wanted, layer.weight.grad = layer.weight.grad, None
    by_torch.clear()
    with fast_decoding(layer):
        layer(x).square().sum().backward()
        assert torch.equal(layer.weight.grad, wanted)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            layer(x)
        assert counted.get_total_flops() == 2 * 2 * 64 * 67
    assert len(by_torch) == 3


@needs_kernel
def test_a_layer_is_its_own_again_afterwards_and_others_stay_theirs(by_torch: list[tuple[int, ...]]) -> None:
    class Own(nn.Linear):
        """Of a class that may compute something else."""

    def offloaded(x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)

    layers = nn.ModuleList([linear(), Own(64, 67), linear()])
    layers[2].forward = offloaded
    x = torch.randn(2, 64)
    with torch.no_grad(), fast_decoding(layers):
        assert "forward" in vars(layers[0])
        assert "forward" not in vars(layers[1])
        with fast_decoding(layers):
            layers[0](x)
        assert "forward" in vars(layers[0])
        assert torch.equal(layers[2](x), x.sum(-1))
    assert "forward" not in vars(layers[0])
    assert layers[2].forward is offloaded
    assert by_torch == []


@pytest.mark.parametrize("dtype", FEW)
@pytest.mark.parametrize("make", [dense_llama, dense_gpt2, lambda: random_moe("mixtral")])
def test_a_model_says_the_same(make: Any, dtype: torch.dtype) -> None:
    model = make().to(dtype)
    ids = torch.randint(0, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids).logits
        with fast_decoding(model):
            cache = model(ids[:, :-1]).cache
            found = model(ids[:, -1:], cache=cache).logits[:, -1]
    scale = wanted.abs().max()
    assert (found - wanted[:, -1]).abs().max() <= {torch.float32: 1e-5, torch.bfloat16: 2**-5}[dtype] * scale
