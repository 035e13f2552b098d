"""Our experts implementation against a naive loop: outputs and every gradient, of every kind of experts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

import smolmoe
from smolmoe.moe.kernels.gate import SwiGlu

smolmoe.register()

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
NAMES = ("hidden", "weights", "up", "down", "up_bias", "down_bias")


def experts_class(**kind: bool) -> Any:
    @use_experts_implementation(**kind)
    class Experts(nn.Module):
        def __init__(self, config: Any):
            super().__init__()
            self.act_fn, self.num_experts = ACT2FN[config.act], config.experts

        def forward(self, *_: Any) -> torch.Tensor:
            raise AssertionError("the eager loop must not run")

    return Experts


def make(
    experts: int = 4,
    size: int = 24,
    width: int = 40,
    dtype: torch.dtype = torch.float32,
    act: str = "silu",
    **kind: bool,
) -> Any:
    gated, transposed = kind.get("has_gate", True), kind.get("is_transposed", False)
    module = experts_class(**kind)(SimpleNamespace(act=act, experts=experts, _experts_implementation="smolmoe"))
    shapes = {"gate_up_proj" if gated else "up_proj": ((1 + gated) * width, size), "down_proj": (size, width)}
    torch.manual_seed(0)
    for name, (n_out, n_in) in shapes.items():
        stack = torch.randn(experts, n_out, n_in, dtype=torch.float64) / n_in**0.5
        stack = stack.mT.contiguous() if transposed else stack
        module.register_parameter(name, nn.Parameter(stack.to(dtype)))
        if kind.get("has_bias"):
            module.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(experts, n_out).to(dtype)))
    return module


def inputs(
    tokens: int, top_k: int, experts: int, size: int = 24, dtype: torch.dtype = torch.float32, only: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, chosen experts (the first `only` alone, where given) and weights."""
    torch.manual_seed(1)
    logits = torch.randn(tokens, experts)
    logits[:, only or experts :] = float("-inf")
    weights, index = logits.softmax(-1).topk(top_k)
    return torch.randn(tokens, size).to(dtype), index, weights.to(dtype if dtype == torch.float64 else torch.float32)


def naive(module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Token by token, choice by choice."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    rows = []
    for token in range(len(hidden)):
        total = torch.zeros_like(hidden[token])
        for expert, weight in zip(index[token].tolist(), weights[token], strict=True):
            inner = project(module, up, expert, hidden[token])
            inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
            total = total + (project(module, "down_proj", expert, inner) * weight).to(total.dtype)
        rows.append(total)
    return torch.stack(rows) if rows else hidden * 0


def project(module: Any, name: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    matrix = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(x, matrix.t() if module.is_transposed else matrix, bias)


def results(call: Any, module: Any, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> dict[str, Any]:
    """The output, and the gradient of everything that has one."""
    module.zero_grad(set_to_none=True)
    leaves = {"hidden": x.detach().clone().requires_grad_(), "weights": weights.detach().clone().requires_grad_()}
    output = call(leaves["hidden"], index, leaves["weights"])
    torch.manual_seed(2)
    output.backward(torch.randn(output.shape).to(output))
    found = {"output": output.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
    return found | {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        if found is None or expected is None:  # frozen, or an expert stack that nobody chose anything of
            assert all(gradient is None or not gradient.any() for gradient in (found, expected)), name
            continue
        assert found.dtype == expected.dtype, name
        scale = max(expected.abs().max().item(), 1e-3) if expected.numel() else 1.0
        assert torch.allclose(found.double() / scale, expected.double() / scale, atol=tolerance, rtol=0), name


def compare(module: Any, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, tolerance: float = 0) -> None:
    ours = results(module, module, x, index, weights)
    theirs = results(lambda *args: naive(module, *args), module, x, index, weights)
    assert_close(ours, theirs, tolerance or TOLERANCE[x.dtype])


@pytest.mark.parametrize("missing", ["ours", "theirs"])
def test_a_missing_gradient_is_a_zero_one(missing: str) -> None:
    real, zero = {"down": torch.ones(2)}, {"down": torch.zeros(2)}
    pair = ({"down": None}, real) if missing == "ours" else (real, {"down": None})
    with pytest.raises(AssertionError, match="down"):
        assert_close(*pair, 1.0)
    assert_close({"down": None}, zero, 0)
    assert_close(zero, {"down": None}, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "only"),
    [
        (1, 2, 4, None),
        (1, 4, 4, None),
        (2, 1, 4, None),
        (5, 2, 8, 3),
        (16, 4, 4, None),
        (40, 1, 3, 1),
        (64, 2, 16, None),
    ],
)
def test_outputs_and_gradients(dtype: torch.dtype, tokens: int, top_k: int, experts: int, only: int | None) -> None:
    compare(make(experts, dtype=dtype), *inputs(tokens, top_k, experts, dtype=dtype, only=only))


@pytest.mark.parametrize("act", ["silu", "gelu", "relu2"])
@pytest.mark.parametrize(
    "kind", [{"is_transposed": True}, {"has_bias": True}, {"has_gate": False}, {"has_gate": False, "has_bias": True}]
)
@pytest.mark.parametrize("tokens", [1, 12])
def test_kinds_of_experts(kind: dict[str, bool], act: str, tokens: int) -> None:
    compare(make(act=act, **kind), *inputs(tokens, 2, 4))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("act", sorted(set(ACT2FN) - {"prelu", "xielu"}))  # those two have parameters: stock runs them
def test_every_activation_while_flops_are_counted(act: str, gated: bool) -> None:
    """torch's counter sets hooks on the inputs of modules, and the activation is one."""
    from torch.utils.flop_counter import FlopCounterMode

    module, given = make(act=act, has_gate=gated, has_bias=True), inputs(6, 2, 4)
    expected = results(lambda *args: naive(module, *args), module, *given)
    with FlopCounterMode(display=False):
        found = results(module, module, *given)
    assert all(gradient is not None for gradient in found.values())
    assert_close(found, expected, 1e-4)


def test_a_gate_of_its_own() -> None:
    config = GptOssConfig(hidden_size=24, intermediate_size=16, num_local_experts=4)
    config._experts_implementation = "smolmoe"
    module = GptOssExperts(config)
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    compare(module, *inputs(12, 2, 4))


@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_small_gradients_are_exact(tokens: int) -> None:
    module = make(3, size=4, width=3, dtype=torch.float64)
    x, index, weights = inputs(tokens, 2, 3, size=4, dtype=torch.float64)
    stacks = [parameter.detach().clone().requires_grad_() for parameter in (module.gate_up_proj, module.down_proj)]

    def call(x: torch.Tensor, weights: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"gate_up_proj": up, "down_proj": down}, (x, index, weights))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), weights.requires_grad_(), *stacks))


def test_many_blocks_are_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = make(8), inputs(50, 3, 8)
    whole = results(module, module, *given)
    monkeypatch.setattr("smolmoe.moe.kernels.function.BLOCK_BYTES", 4000)
    assert_close(results(module, module, *given), whole, 1e-6)


@pytest.mark.parametrize("only", [None, 20])
def test_many_experts_of_few_tokens_in_bf16(only: int | None) -> None:
    compare(make(24, dtype=torch.bfloat16), *inputs(90, 3, 24, dtype=torch.bfloat16, only=only))


def test_weights_of_zero_and_a_repeated_expert() -> None:
    module = make()
    x, index, weights = inputs(6, 2, 4)
    weights[::2, 1] = 0
    compare(module, x, index, weights)
    compare(module, x[:1], torch.tensor([[2, 2]]), weights[:1])


def test_no_tokens() -> None:
    compare(make(), *inputs(0, 2, 4))


def test_inputs_that_are_not_contiguous() -> None:
    module = make()
    x, index, weights = inputs(12, 2, 4)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    wide = torch.cat([index, index], dim=1)[:, :2]
    assert not strided.is_contiguous()
    module.gate_up_proj = nn.Parameter(module.gate_up_proj.detach().mT.contiguous().mT)
    for call in (module, lambda *args: naive(module, *args)):
        leaf = strided.requires_grad_()
        result = call(leaf, wide, weights.t().contiguous().t())
        # The gradient that comes back is not contiguous either.
        result.t().contiguous().t().mul(torch.arange(24.0)).t().sum().backward()
        found = (result.detach(), leaf.grad, module.gate_up_proj.grad)
        if call is module:
            ours, leaf.grad = found, None
            module.zero_grad(set_to_none=True)
    for mine, theirs in zip(ours, found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", ["hidden", "weights", "gate_up_proj", "down_proj"])
def test_only_what_is_needed_is_computed(trained: str) -> None:
    module = make()
    x, index, weights = inputs(12, 2, 4)
    everything = results(module, module, x, index, weights)
    module.zero_grad(set_to_none=True)
    module.requires_grad_(False)
    leaves = {"hidden": x, "weights": weights, **dict(module.named_parameters())}
    leaves[trained].requires_grad_().grad = None
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = module(x, index, weights)
        forward = counter.get_total_flops()
        torch.manual_seed(2)
        result.backward(torch.randn(result.shape))
    torch.testing.assert_close(leaves[trained].grad, everything[trained])
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != trained)
    assert forward == 2 * 12 * 2 * 3 * 24 * 40  # K of E experts, and no more
    shares = {"hidden": 3, "weights": 0, "gate_up_proj": 3, "down_proj": 1}
    assert counter.get_total_flops() - forward == shares[trained] * 2 * 12 * 2 * 24 * 40


def test_nothing_but_what_the_backward_pass_needs_is_kept() -> None:
    module = make()
    x, index, weights = inputs(32, 2, 4)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(tuple(t.shape)), t)[1], lambda t: t):
        module(x, index, weights)
    assert sorted(shape for shape in kept if len(shape) == 2 and shape[0] == 64) == [(64, 80)]  # the router is frozen


def test_twice_in_one_graph_and_with_the_graph_kept() -> None:
    module = make()
    x, index, weights = inputs(10, 2, 4)

    def twice(call: Any) -> Any:
        return lambda x, index, weights: call(call(x, index, weights), index, weights) + call(x, index, weights)

    theirs = results(twice(lambda *args: naive(module, *args)), module, x, index, weights)
    assert_close(results(twice(module), module, x, index, weights), theirs, 1e-4)
    leaf = x.requires_grad_()
    total = module(leaf, index, weights).sum()
    total.backward(retain_graph=True)
    once = leaf.grad.clone()
    total.backward()
    torch.testing.assert_close(leaf.grad, 2 * once)


def test_checkpointing_and_inference_mode() -> None:
    module, given = make(), inputs(12, 2, 4)
    plain = results(module, module, *given)
    assert_close(results(lambda *args: checkpoint(module, *args, use_reentrant=False), module, *given), plain, 1e-7)
    with torch.inference_mode():
        assert torch.equal(module(*given), plain["output"])


@pytest.mark.parametrize("tokens", [1, 12])
def test_autocast(tokens: int) -> None:
    module = make(size=32)
    x, index, weights = inputs(tokens, 2, 4, size=32)
    lowered = make(size=32, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = results(module, module, x, index, weights)
        again = results(lambda *args: naive(module, *args), module, x, index, weights)
    assert_close(ours, again, 3e-2)
    assert not torch.equal(ours["output"], module(x, index, weights))
    with torch.no_grad():
        torch.testing.assert_close(ours["output"], lowered(x.bfloat16(), index, weights).float(), atol=2e-2, rtol=2e-2)


def test_parametrised_weights_as_of_an_adapter() -> None:
    class Adapter(nn.Module):
        def __init__(self, shape: torch.Size):
            super().__init__()
            self.a = nn.Parameter(torch.randn(shape[0], shape[1], 2) * 0.1)
            self.b = nn.Parameter(torch.randn(shape[0], 2, shape[2]) * 0.1)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.a @ self.b

    module = make()
    module.requires_grad_(False)
    nn.utils.parametrize.register_parametrization(module, "gate_up_proj", Adapter(module.gate_up_proj.shape))
    compare(module, *inputs(12, 2, 4))


def test_compiling_takes_the_stock_implementation() -> None:
    module, given = make(), inputs(12, 2, 4)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert_close(results(compiled, module, *given), results(module, module, *given), 1e-5)


def test_what_is_not_ours_is_left_to_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("not ours")

    module, given = make(), inputs(12, 2, 4)
    expected = module(*given)
    monkeypatch.setattr("smolmoe.moe.kernels.register.apply_experts", refuse)
    with pytest.raises(AssertionError, match="not ours"):
        module(*given)
    module._is_expert_parallel = True
    torch.testing.assert_close(module(*given), expected, atol=1e-5, rtol=1e-5)
    module._is_expert_parallel = False
    module.has_post_expert_norm, module.post_expert_norm = True, nn.Identity()
    torch.testing.assert_close(module(*given), expected, atol=1e-5, rtol=1e-5)
    module.has_post_expert_norm = False
    module.act_fn = nn.PReLU()
    module(*given)


def test_the_fused_gate_is_taken_for_silu_alone() -> None:
    from smolmoe.moe.kernels.register import _gate_of

    assert isinstance(_gate_of(make()), SwiGlu)
    assert not isinstance(_gate_of(make(act="gelu")), SwiGlu)
    assert not isinstance(_gate_of(make(has_gate=False)), SwiGlu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "kind", [{}, {"has_bias": True}, {"has_gate": False}, {"is_transposed": True, "has_bias": True}]
)
@pytest.mark.parametrize("top_k", [1, 4])
def test_one_token_of_decoding(dtype: torch.dtype, kind: dict[str, bool], top_k: int) -> None:
    module, (x, index, weights) = make(5, dtype=dtype, **kind), inputs(1, top_k, 5, dtype=dtype)
    with torch.no_grad():
        ours, theirs = module(x, index, weights), naive(module, x, index, weights)
    assert_close({"output": ours}, {"output": theirs}, TOLERANCE[dtype])


@pytest.mark.parametrize("grad", [True, False])
def test_one_token_leaves_the_process_as_it_was(grad: bool) -> None:
    module = make(dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        module(*inputs(1, 2, 4, dtype=torch.bfloat16))
    assert torch.backends.mkldnn.enabled
