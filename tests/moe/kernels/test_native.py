"""The kernel for few tokens: products of every shape it takes, and what happens where it cannot be."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smolmoe.moe.kernels import native as experts_native
from smolmoe.moe.kernels.function import Layer, Stacks, apply_experts
from smolmoe.moe.kernels.gate import SwiGlu
from smolmoe.moe.kernels.native import FEW, few_swiglu_experts, project_few, swiglu, swiglu_backward

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
needs_kernel = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def spans_of(rows: list[int], start: int = 0) -> list[tuple[int, int, int]]:
    """Experts with so many rows each; those with none are left out."""
    spans = []
    for expert, count in enumerate(rows):
        if count:
            spans.append((expert, start, start + count))
            start += count
    return spans


def expected(x: torch.Tensor, stack: torch.Tensor, rows: list[int]) -> torch.Tensor:
    parts = x.double().split(rows)
    return torch.cat([part @ stack[expert].double().T for expert, part in enumerate(parts)])


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[1], [0, 1, 0, 2], [3, 4, 5, 6], [0, 11, 1, 0, 1], [7, 8] * 3])
@pytest.mark.parametrize("outputs", [4, 5, 64, 67, 1027])
def test_products(dtype: torch.dtype, rows: list[int], outputs: int, threads: int) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    x, stack = torch.randn(sum(rows), 96).to(dtype), torch.randn(len(rows), outputs, 96).to(dtype)
    padded = torch.full((sum(rows) + 2, outputs), 7.0, dtype=dtype)
    out = padded[1:-1]
    torch.set_num_threads(threads)
    try:
        assert project_few(x, stack, spans_of(rows, start=5), out)
    finally:
        torch.set_num_threads(before)
    wanted = expected(x, stack, rows)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()
    assert (padded[[0, -1]] == 7).all()


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    x = torch.ones(3, 32, dtype=dtype)
    x[0, 3], x[1, 3] = torch.nan, torch.inf
    out = torch.empty(3, 4, dtype=dtype)
    assert project_few(x, torch.ones(1, 4, 32, dtype=dtype), [(0, 0, 3)], out)
    assert out[0].isnan().all()
    assert (out[1] == torch.inf).all()
    assert (out[2] == 32).all()


@needs_kernel
def test_rounding_is_torchs() -> None:
    """One input at a time, so that the sum is exact and only its rounding is looked at."""
    torch.manual_seed(0)
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, 0] = 1 + 2**-7
    stack = torch.zeros(1, 4096, 32, dtype=torch.bfloat16)
    stack[0, :, 0] = torch.randn(4096).bfloat16()
    out = torch.empty(1, 4096, dtype=torch.bfloat16)
    assert project_few(x, stack, [(0, 0, 1)], out)
    assert torch.equal(out[0], (stack[0, :, 0].float() * x[0, 0].float()).bfloat16())


def naive(x: torch.Tensor, index: torch.Tensor, *floats: torch.Tensor) -> torch.Tensor:
    """In float64: what nobody may be further from than rounding."""
    x, weights, up, down = (tensor.double() for tensor in (x, *floats))
    out = torch.zeros_like(x)
    for token, (experts, shares) in enumerate(zip(index.tolist(), weights, strict=True)):
        for expert, share in zip(experts, shares, strict=True):
            gate, value = (up[expert] @ x[token]).chunk(2)
            out[token] += share * (down[expert] @ (torch.nn.functional.silu(gate) * value))
    return out


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 3e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (1, 8, 8), (7, 4, 2), (16, 32, 3), (40, 2, 2)])
def test_whole_layer(tokens: int, experts: int, top_k: int, dtype: torch.dtype, exact: float, threads: int) -> None:
    torch.manual_seed(0)
    x, up, down = (torch.randn(*shape).to(dtype) for shape in ((tokens, 64), (experts, 192, 64), (experts, 64, 96)))
    weights, index = torch.rand(tokens, experts).topk(top_k)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = few_swiglu_experts(x, index, weights, up, down)
        other = few_swiglu_experts(x.T.contiguous().T, index.flip(1), weights.flip(1), up, down)
    finally:
        torch.set_num_threads(before)
    assert out is not None
    assert other is not None
    assert out.dtype == dtype
    wanted = naive(x, index, weights, up, down)
    assert (out.double() - wanted).abs().max() <= exact * wanted.abs().max()
    assert (other.double() - wanted).abs().max() <= exact * wanted.abs().max()


@needs_kernel
def test_the_sum_over_experts_is_rounded_once() -> None:
    """Eight equal experts of weight 1/8 each, of which bf16 partial sums would lose bits."""
    torch.manual_seed(0)
    up, down = torch.randn(1, 64, 32).bfloat16(), torch.randn(1, 32, 32).bfloat16()
    x, index = torch.randn(4, 32).bfloat16(), torch.arange(8).repeat(4, 1)
    alone = few_swiglu_experts(x, index[:, :1], torch.ones(4, 1), up, down)
    together = few_swiglu_experts(x, index, torch.full((4, 8), 0.125), up.repeat(8, 1, 1), down.repeat(8, 1, 1))
    assert together is not None
    assert torch.equal(together, alone)


@needs_kernel
def test_large_and_broken_activations() -> None:
    """SiLU of -300 .. 300 and of what is no number, one at a time."""
    gates = torch.cat([torch.linspace(-300, 300, 61), torch.linspace(-9, 9, 61), torch.tensor([torch.nan])])
    x = torch.zeros(len(gates), 32)
    x[:, 0], x[:, 1] = gates, 1
    up, down = torch.zeros(1, 64, 32), torch.zeros(1, 32, 32)
    up[0, 0, 0], up[0, 32, 1], down[0, 0, 0] = 1, 1, 1
    index = torch.zeros(len(gates), 1, dtype=torch.int64)
    parts = [
        few_swiglu_experts(x[part], index[part], torch.ones(len(index[part]), 1), up, down)
        for part in (slice(0, 40), slice(40, 80), slice(80, 120), slice(120, None))
    ]
    out = torch.cat([part for part in parts if part is not None])[:, 0]
    torch.testing.assert_close(out, torch.nn.functional.silu(gates), rtol=1e-6, atol=1e-30, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)])
def test_swiglu_and_its_gradient(dtype: torch.dtype, exact: float, threads: int) -> None:
    torch.manual_seed(0)
    pre, grad = (4 * torch.randn(301, 2 * 480)).to(dtype), torch.randn(301, 480).to(dtype)
    inner, again, grad_pre = torch.empty_like(grad), torch.empty_like(grad), torch.empty_like(pre)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert swiglu(pre, inner)
        assert swiglu_backward(pre, grad, again, grad_pre)
    finally:
        torch.set_num_threads(before)
    leaf = pre.double().requires_grad_()
    gate, up = leaf.chunk(2, -1)
    wanted = torch.nn.functional.silu(gate) * up
    wanted.backward(grad.double())
    torch.testing.assert_close(inner.double(), wanted.detach(), rtol=exact, atol=1e-6)
    assert torch.equal(again, inner)
    assert leaf.grad is not None
    torch.testing.assert_close(grad_pre.double(), leaf.grad, rtol=exact, atol=1e-6)


def test_swiglu_it_is_not_for() -> None:
    pre, inner = torch.randn(3, 64), torch.full((3, 32), 7.0)
    for one, other in (
        (pre.double(), inner.double()),
        (pre.bfloat16(), inner),
        (pre[:, :48].contiguous(), inner[:, :24].contiguous()),
        (pre, inner.T.contiguous().T),
    ):
        assert not swiglu(one, other)
        assert not swiglu_backward(one, other, other.clone(), one.clone())
        assert (other == 7).all()


@needs_kernel
def test_choices_it_is_not_for() -> None:
    up, down = torch.randn(2, 64, 32), torch.randn(2, 32, 32)
    x, weights = torch.randn(3, 32), torch.ones(3, 1)
    for wrong in (2, -1):
        index = torch.tensor([[0], [1], [wrong]])
        assert few_swiglu_experts(x, index, weights, up, down) is None
    tokens = FEW[torch.float32] + 1  # all of them one expert's, while the layer has room for more
    crowd = torch.zeros(tokens, 1, dtype=torch.int64)
    assert few_swiglu_experts(torch.randn(tokens, 32), crowd, torch.ones(tokens, 1), up, down) is None


def test_what_it_is_not_for_is_left_alone() -> None:
    x, stack, out = torch.randn(2, 64), torch.randn(2, 8, 64), torch.full((2, 8), 7.0)
    spans = [(0, 0, 1), (1, 1, 2)]
    few = FEW[torch.float32]
    many = torch.randn(2 * few + 1, 64)
    refused = [
        (many, stack, [(0, 0, few), (1, few, 2 * few + 1)], many.new_full((2 * few + 1, 8), 7.0)),
        (x.double(), stack.double(), spans, out.double()),
        (x.half(), stack.half(), spans, out.half()),
        (x.bfloat16(), stack, spans, out),
        (x[:, :48].contiguous(), stack[:, :, :48].contiguous(), spans, out),
        (x, stack[:, :3].contiguous(), spans, out[:, :3].contiguous()),
        (x, stack.mT.contiguous().mT, spans, out),
        (x.T.contiguous().T, stack, spans, out),
        (x, stack, spans, out.T.contiguous().T),
    ]
    for given in refused:
        assert not project_few(*given)
        assert (given[-1] == 7).all()


def test_flop_counters_see_torchs_products() -> None:
    up, down = torch.randn(4, 64, 32), torch.randn(4, 32, 32)
    index = torch.tensor([[0, 1], [2, 1]])
    layer = Layer(SwiGlu(), False, torch.float32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        apply_experts(torch.randn(2, 32), index, torch.ones(2, 2), Stacks(up, down, None, None), layer)
    assert counter.get_total_flops() == 2 * index.numel() * (64 * 32 + 32 * 32)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_the_layer_computes_the_same(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    stacks = Stacks(torch.randn(4, 64, 32), torch.randn(4, 32, 32), None, None)
    layer = Layer(SwiGlu(), False, torch.float32)
    given = torch.randn(3, 32), torch.tensor([[0, 1], [2, 1], [3, 0]]), torch.rand(3, 2)
    with torch.no_grad():
        usual = apply_experts(*given, stacks, layer)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken) if compiler == "broken" else str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experts_native._library.cache_clear()
    try:
        with torch.no_grad(), caplog.at_level(logging.WARNING):
            without = apply_experts(*given, stacks, layer)
        assert experts_native._library() is None
    finally:
        experts_native._library.cache_clear()
    torch.testing.assert_close(without, usual, rtol=1e-5, atol=1e-5)
    assert len(caplog.records) == (compiler == "broken")
    assert not list(tmp_path.rglob("few*"))


@needs_kernel
def test_it_is_built_once_for_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = b"".join(
        f"void {name}(void) {{}}\n".encode()
        for name in [
            f"{kind}_{dtype}" for kind in ("project", "experts", "gate", "gate_back") for dtype in ("f32", "bf16")
        ]
    )  # of no use, but quickly compiled
    compiler = str(shutil.which("cc"))
    experts_native._load(compiler, source)
    (made,) = (tmp_path / "smolmoe").iterdir()
    written = made.stat().st_mtime_ns
    experts_native._load(compiler, source)
    assert made.stat().st_mtime_ns == written
    monkeypatch.setattr(experts_native, "_processor", lambda: "another")
    experts_native._load(compiler, source)
    assert len(list((tmp_path / "smolmoe").iterdir())) == 2
