"""The code that runs on a GPU, with tensors that have a device and no values.

A tensor made on the CPU, a value read off the device, or a kernel that CUDA refuses fails here; numbers are tested in
`tests/on_gpu`, on a GPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda, put
from helpers import MOE_CONFIGS, random_moe
from tests.moe.dense import FAMILIES, moe_config
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import smolmoe
from smolmoe.core.devices import in_double
from smolmoe.inference.sampling import _Draw
from smolmoe.moe import losses
from smolmoe.moe.balance import update_selection_bias
from smolmoe.moe.gating import GateSpec, Intervention, route
from smolmoe.moe.generic import SmolMoeBlock
from smolmoe.moe.kernels import linear_cross_entropy
from smolmoe.moe.kernels.register import set_experts, stock_choice
from smolmoe.moe.routing import RoutingCapture, find_routers
from smolmoe.training.objective import Objective
from smolmoe.training.optim import install_moments

BF16 = torch.bfloat16
# The recurrent layers of the others choose kernels for CUDA, and convolutions look for the device.
KINDS = [kind for kind in MOE_CONFIGS if kind not in ("granitemoehybrid", "qwen3_5_moe_text", "lfm2_moe")]

smolmoe.register()


def experts(width: int = 32, size: int = 32) -> Any:
    config = MixtralConfig(hidden_size=size, intermediate_size=width, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "smolmoe"
    return MixtralExperts(config)


def tokens(count: int, dtype: torch.dtype, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, chosen experts and gates on the fake GPU."""
    hidden, gates = (torch.empty(count, width, dtype=dtype, device="cuda") for width in (size, 2))
    return hidden, torch.empty(count, 2, dtype=torch.int64, device="cuda"), gates


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_what_is_recorded_stay_on_the_gpu(kind: str) -> None:
    """Nor does anything wait for it: a value read off the device is an error here."""
    model = random_moe(kind)
    assert set_experts(model, device="cuda:0") == "smolmoe"
    with fake_cuda():
        ids = torch.empty(2, 12, dtype=torch.int64, device="cuda")
        with RoutingCapture(put(model, BF16)) as capture:
            logits = model(input_ids=ids, use_cache=False).logits
        routings = [capture.routing(layer) for layer in capture.layers]
    assert logits.device.type == "cuda"
    found = [t for routing in routings for t in (routing.logits, routing.weights, routing.indices, routing.scores)]
    assert {tensor.device.type for tensor in found} == {"cuda"}


@pytest.mark.parametrize("options", [{}, {"scoring_func": "sigmoid"}, {"router_top_p": 0.6}, {"capacity_factor": 1.5}])
def test_the_generic_block_stays_on_the_gpu(options: dict[str, Any]) -> None:
    config = moe_config(FAMILIES["llama"], **options)
    config._experts_implementation = "smolmoe"
    block = SmolMoeBlock(config)
    with fake_cuda():
        x = torch.empty(2, 12, config.get_text_config().hidden_size, dtype=BF16, device="cuda")
        out = put(block, BF16)(x)
    assert (out.device.type, out.dtype) == ("cuda", BF16)


@pytest.mark.parametrize(
    "change",
    [
        {"noise": 0.3},
        {"noise": 0.3, "granularity": 2},
        {"sample": True},
        {"sample": True, "granularity": 2},
        {"expert_dropout": 0.4},
        {"fp32": True, "temperature": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("spec", [{}, {"scoring": "sigmoid", "groups": 2, "top_groups": 1}, {"over_chosen": True}])
def test_interventions_stay_on_the_gpu(change: dict[str, Any], spec: dict[str, Any]) -> None:
    with fake_cuda():
        x, weight = (torch.empty(rows, 16, dtype=BF16, device="cuda") for rows in (12, 8))
        bias = torch.empty(8, device="cuda")
        available = torch.empty(8, dtype=torch.bool, device="cuda")
        given = GateSpec(8, 4, **spec), Intervention(**change)
        found = route(x, weight, bias, *given, training=True, available=available)
    assert {tensor.device.type for tensor in found} == {"cuda"}


@pytest.mark.parametrize("count", [4, 64])
def test_autocast_lowers_the_products_of_experts(count: int) -> None:
    """torch's grouped product has no rule for autocast: it would compute in the weights' fp32."""
    layer = experts()
    with fake_cuda(autocast=BF16) as products:
        hidden, index, gates = tokens(count, torch.float32)
        out = put(layer, torch.float32)(hidden, index, gates)
    assert {dtype for _, dtype in products.found} == {BF16}
    assert out.dtype == torch.float32


def test_without_autocast_products_have_the_type_of_the_weights() -> None:
    layer = experts()
    with fake_cuda(autocast=None) as products:
        out = put(layer, BF16)(*tokens(64, BF16))
    assert products.found == {("_grouped_mm", BF16)}
    assert out.dtype == BF16


def test_the_choice_on_a_gpu() -> None:
    with fake_cuda():
        narrow, wide = put(experts(width=20), BF16), put(experts(width=32), BF16)
        few, many = (tokens(count, BF16)[:2] for count in (8, 9))
        found = [stock_choice(layer, *given) for layer in (narrow, wide) for given in (few, many)]
        exact = [stock_choice(put(experts(width=width), torch.float32), *many) for width in (20, 30)]
    # Rows of 40 bytes are none that a grouped product takes: 16 choices are copied, more go expert by expert.
    assert found == ["batched_mm", "eager", "batched_mm", "grouped_mm"]
    assert exact == ["grouped_mm", "eager"]


def test_widths_that_grouped_products_refuse_are_computed() -> None:
    """The same refusal on the CPU, where the numbers can be compared."""
    layer = experts(width=30)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -0.3, 0.3)
    hidden, (gates, index) = torch.randn(40, 32), torch.randn(40, 4).softmax(-1).topk(2)
    expected = layer(hidden, index, gates)
    layer._is_expert_parallel = True  # left to stock
    assert stock_choice(layer, hidden, index) == "eager"
    torch.testing.assert_close(layer(hidden, index, gates), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_loss_from_the_head_stays_on_the_gpu(dtype: torch.dtype, with_bias: bool) -> None:
    with fake_cuda():
        hidden, weight = (torch.empty(rows, 16, dtype=dtype, device="cuda") for rows in (12, 40))
        bias = torch.empty(40, dtype=dtype, device="cuda") if with_bias else None
        labels = torch.empty(12, dtype=torch.int64, device="cuda")
        found = linear_cross_entropy._run(hidden, weight, bias, labels, dtype, (True, True, True))
    assert {tensor.device.type for tensor in found if tensor is not None} == {"cuda"}


def test_router_terms_are_computed_on_the_gpu_without_waiting() -> None:
    model = random_moe("glm4_moe")
    weights = {loss.name: 0.1 for loss in losses.ROUTER_LOSSES}
    recipe = SimpleNamespace(**weights, balance_scope="batch", bias_rate=1e-3, preset_bias=0, beta=1.0)
    routing = SimpleNamespace(
        noise=0.1, temperature=1.0, sample=False, top_k=None, expert_dropout=0.1, fp32=False, tie_groups=0, reserved=()
    )
    objective = Objective(model, recipe, routing)  # type: ignore[arg-type]
    with fake_cuda():
        put(model, BF16).train()
        objective.counts = torch.zeros(objective.counts.shape, dtype=torch.int64)  # as made: on the CPU
        with objective.recording():
            model(input_ids=torch.empty(2, 12, dtype=torch.int64, device="cuda"), use_cache=False)
        terms = objective.terms()
        objective.after_step(0)
        counts = objective.take_counts()
    assert set(terms) == set(weights)
    assert counts is not None
    assert {tensor.device.type for tensor in (*terms.values(), counts)} == {"cuda"}


def test_biases_move_on_the_gpu() -> None:
    with fake_cuda():
        bias, load = torch.empty(8, device="cuda"), torch.empty(8, device="cuda")
        update_selection_bias(bias, load, 0.1)
    assert bias.device.type == "cuda"


@pytest.mark.parametrize("fused", [True, False])
def test_carried_steps_are_where_the_optimiser_reads_them(fused: bool) -> None:
    """The fused kernel reads the number of steps on the GPU; the plain one wants it on the CPU."""
    layer = experts()
    moment = SimpleNamespace(exp_avg=torch.zeros(4, 64, 32), exp_avg_sq=torch.zeros(4, 64, 32), step=7)
    with fake_cuda():
        put(layer, torch.float32)
        moment.exp_avg, moment.exp_avg_sq = torch.empty(4, 64, 32), torch.empty(4, 64, 32)
        optimizer = torch.optim.AdamW([p.requires_grad_() for p in layer.parameters()], fused=fused)
        assert install_moments(optimizer, layer, {"gate_up_proj": moment}) == 1
    state = optimizer.state[layer.gate_up_proj]
    assert {state[name].device.type for name in ("exp_avg", "exp_avg_sq")} == {"cuda"}
    assert state["step"].device.type == ("cuda" if fused else "cpu")


def test_tokens_are_sampled_on_the_gpu() -> None:
    with fake_cuda():
        draw = _Draw(torch.empty(2, 4, dtype=torch.float64), 0.7, 5)
        scores = draw(torch.empty(2, 6, dtype=torch.int64, device="cuda"), torch.empty(2, 50, device="cuda"))
    assert (scores.device.type, scores.dtype) == ("cuda", torch.float32)


def test_mps_has_no_double_precision() -> None:
    with fake_cuda():
        there, here = in_double(torch.empty(3, device="cuda")), in_double(torch.empty(3, device="mps"))
    assert (there.device.type, here.device.type) == ("cuda", "cpu")
    assert {there.dtype, here.dtype} == {torch.float64}


def test_a_mistake_is_found() -> None:
    """What these tests stand on: two devices in one operation, and a value that would have to be waited for."""
    with fake_cuda():
        there = torch.empty(3, device="cuda")
        with pytest.raises(RuntimeError, match="same device"):
            there * torch.empty(3)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            bool((there == 0).all())


def test_find_routers_needs_no_values() -> None:
    with fake_cuda():
        assert len(find_routers(put(random_moe("mixtral"), BF16))) == 2
