"""`route` is the stock routers' computation to the last bit, and interventions do what they say."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import MOE_CONFIGS, random_moe
from tests.moe.dense import FAMILIES, D, moe_config
from torch import nn

from smolmoe.errors import RequestError, TargetError
from smolmoe.moe.gating import _SPECS, GateSpec, Intervention, gate_spec, route, router_weight, selection_bias
from smolmoe.moe.generic import SmolMoeRouter
from smolmoe.moe.routing import find_routers

E, K, T = 8, 4, 96
MODULES = {
    "FlexOlmoTopKRouter": "flex_olmo",
    "OlmoeTopKRouter": "olmoe",
    "Qwen2MoeTopKRouter": "qwen2_moe",
    "Qwen3MoeTopKRouter": "qwen3_moe",
    "Qwen3NextTopKRouter": "qwen3_next",
    "Qwen3VLMoeTextTopKRouter": "qwen3_vl_moe",
    "Qwen3_5MoeTopKRouter": "qwen3_5_moe",
    "MellumTopKRouter": "mellum",
    "MiniMaxTopKRouter": "minimax",
    "MixtralTopKRouter": "mixtral",
    "GraniteMoeHybridTopKRouter": "granitemoehybrid",
    "GraniteMoeSWATopKRouter": "granitemoe_swa",
    "GraniteMoeSharedTopKRouter": "granitemoeshared",
    "GraniteMoeTopKRouter": "granitemoe",
    "DeepseekV3TopkRouter": "deepseek_v3",
    "Dots1TopkRouter": "dots1",
    "ExaoneMoeTopkRouter": "exaone_moe",
    "Glm4MoeLiteTopkRouter": "glm4_moe_lite",
    "Glm4MoeTopkRouter": "glm4_moe",
    "BeamTopKRouter": "beam",
    "Glm4vMoeTextTopkRouter": "glm4v_moe",
    "GlmMoeDsaTopkRouter": "glm_moe_dsa",
    "SolarOpenTopkRouter": "solar_open",
    "Cohere2MoeTopKRouter": "cohere2_moe",
    "Ernie4_5_MoeTopKRouter": "ernie4_5_moe",
    "HunYuanMoEV1Gate": "hunyuan_v1_moe",
    "Lfm2MoeTopKRouter": "lfm2_moe",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not_renormalised": {"norm_topk_prob": False},
    "groups": {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    "sigmoid": {"expert_selection_fn": "sigmoid"},
}
GENERIC: list[dict[str, Any]] = [
    {},
    {"norm_topk_prob": False},
    {"scoring_func": "sigmoid"},
    {"router_top_p": 0.6},
    {"router_top_p": 0.6, "scoring_func": "sigmoid"},
    {"capacity_factor": 0.8, "router_top_p": 0.7},
]


def stock_router(name: str, **options: Any) -> nn.Module:
    module = importlib.import_module(f"transformers.models.{MODULES[name]}.modeling_{MODULES[name]}")
    sizes = dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), E)
    values = {"hidden_size": D, "num_experts_per_tok": K, "norm_topk_prob": True, "n_group": 1, "topk_group": 1}
    values |= {"moe_topk": K, "moe_norm_min": 1e-12, "use_expert_bias": True, "expert_selection_fn": "softmax"}
    return getattr(module, name)(SimpleNamespace(**{**sizes, **values, "routed_scaling_factor": 1.0, **options}))


def filled(router: Any, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    router = router.to(dtype)
    nn.init.normal_(router_weight(router), std=0.4)
    bias = selection_bias(router)
    if bias is not None:
        bias.data.copy_(0.1 * torch.randn(E))
    elif hasattr(router, "use_expert_bias"):  # the block around it has the bias
        router.expert_bias = 0.1 * torch.randn(E)
        router.forward = lambda x: type(router).forward(router, x, router.expert_bias)
    return router


def run(router: Any, intervention: Intervention | None = None, *, x: torch.Tensor | None = None, **more: Any) -> Any:
    x = tokens() if x is None else x
    bias = selection_bias(router, router)
    return route(x, router_weight(router), bias, gate_spec(router), intervention, training=True, **more)


def tokens(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(3)).to(dtype)


def assert_parity(router: Any, dtype: torch.dtype, autocast: bool) -> None:
    def gradients(compute: Any) -> tuple[Any, list[torch.Tensor]]:
        x = tokens(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits, weights, chosen = compute(x)
        loss = (weights.float() * torch.arange(float(K))).sum() + logits.float().square().mean()
        return (logits, weights, chosen), list(torch.autograd.grad(loss, (x, router_weight(router))))

    stock, stock_gradients = gradients(router)
    ours, our_gradients = gradients(lambda x: run(router, Intervention(), x=x))
    for expected, actual in zip((*stock, *stock_gradients), (*ours, *our_gradients), strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)
    assert stock_gradients[1].any()


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_stock_routers_bit_for_bit(name: str, options: str, dtype: torch.dtype, autocast: bool) -> None:
    assert_parity(filled(stock_router(name, **OPTIONS[options]), dtype), dtype, autocast)


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
@pytest.mark.parametrize("options", GENERIC, ids=str)
def test_the_generic_router_bit_for_bit(options: dict[str, Any], dtype: torch.dtype, autocast: bool) -> None:
    config = moe_config(FAMILIES["llama"], num_experts=E, num_experts_per_tok=K, **options)
    assert_parity(filled(SmolMoeRouter(config), dtype), dtype, autocast)


def test_every_known_router_is_tested() -> None:
    assert set(_SPECS) == {*MODULES, "SmolMoeRouter"}


@pytest.mark.parametrize("kind", MOE_CONFIGS)
def test_the_routers_of_whole_models_are_known(kind: str) -> None:
    for _, router in find_routers(random_moe(kind)):
        assert gate_spec(router).experts == 4


def test_a_subclass_is_its_parent_unless_it_computes_otherwise() -> None:
    mixtral = type(stock_router("MixtralTopKRouter"))
    wrapped = type("FSDPMixtralTopKRouter", (mixtral,), {})
    config = SimpleNamespace(num_local_experts=E, hidden_size=D, num_experts_per_tok=K)
    assert gate_spec(wrapped(config)).top_k == K
    own = type("MyRouter", (mixtral,), {"forward": lambda self, x: x})
    with pytest.raises(TargetError, match=r"MyRouter.*MixtralTopKRouter"):
        gate_spec(own(config))


@pytest.mark.parametrize(
    "bad",
    [
        {"noise": -1.0},
        {"noise": "much"},
        {"temperature": 0.0},
        {"expert_dropout": 1.0},
        {"granularity": 0},
        {"sample": -1.0},
        {"top_k": 0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(bad))):
        Intervention(**bad)


ALL = Intervention(noise=0.5, sample=True, expert_dropout=0.5, fp32=True)


def test_without_training_only_the_temperature_acts() -> None:
    router = filled(stock_router("Qwen3MoeTopKRouter"))
    spec = gate_spec(router)
    for mine, stock in zip(route(tokens(), router.weight, None, spec, ALL), router(tokens()), strict=True):
        assert torch.equal(mine, stock)
    logits, gates, _ = route(tokens(), router.weight, None, spec, Intervention(temperature=2.0))
    torch.testing.assert_close(logits, router(tokens())[0] / 2)
    expected = (router(tokens())[0] / 2).softmax(-1).topk(K).values
    torch.testing.assert_close(gates, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("name", ["MixtralTopKRouter", "GraniteMoeTopKRouter", "Glm4MoeTopkRouter"])
def test_noise_changes_choice_and_gates_but_not_the_logits_returned(name: str) -> None:
    router = filled(stock_router(name))
    clean, stock_gates, stock_chosen = router(tokens())
    logits, gates, chosen = run(router, Intervention(noise=1.0))
    assert torch.equal(logits, clean)
    assert (chosen.sort(-1).values != stock_chosen.sort(-1).values).any()
    assert gates.dtype == stock_gates.dtype
    torch.testing.assert_close(gates.sum(-1), torch.ones(T))


def test_noise_has_the_stated_scale() -> None:
    spec = GateSpec(experts=2, top_k=2, renormalise=False)
    x, weight = torch.ones(20_000, D), torch.zeros(2, D)
    torch.manual_seed(0)

    def spread(noise: Any, noise_weight: torch.Tensor | None = None) -> float:
        act = Intervention(noise=noise)
        _, gates, chosen = route(x, weight, None, spec, act, training=True, noise_weight=noise_weight)
        ordered = gates.gather(-1, chosen.argsort(-1))
        return (ordered[:, 0] / ordered[:, 1]).log().std().item() / math.sqrt(2)  # of one logit

    assert spread(0.3) == pytest.approx(0.3, rel=0.03)
    assert spread("learned", torch.zeros(2, D)) == pytest.approx(math.log(2) + 1e-2, rel=0.03)
    assert spread("learned", torch.full((2, D), -1.0)) == pytest.approx(1e-2, rel=0.03)  # never without noise
    wide = F.softplus(torch.tensor(0.1 * D)).item() + 1e-2
    assert spread("learned", torch.full((2, D), 0.1)) == pytest.approx(wide, rel=0.03)
    with pytest.raises(RequestError, match="noise_weight"):
        spread("learned")


def test_learned_noise_has_a_gradient() -> None:
    router = filled(stock_router("MixtralTopKRouter"))
    noise_weight = torch.zeros(E, D, requires_grad=True)
    _, gates, _ = run(router, Intervention(noise="learned"), noise_weight=noise_weight)
    (gates * torch.arange(float(K))).sum().backward()
    assert noise_weight.grad is not None
    assert noise_weight.grad.any()


@pytest.mark.parametrize("name", ["MixtralTopKRouter", "GraniteMoeTopKRouter", "DeepseekV3TopkRouter"])
def test_sampling_draws_by_probability_and_leaves_gates_true(name: str) -> None:
    router = filled(stock_router(name, num_experts_per_tok=1, norm_topk_prob=False))
    if name == "DeepseekV3TopkRouter":
        router.e_score_correction_bias.zero_()
    x = tokens()[:1].expand(40_000, D)
    torch.manual_seed(0)
    logits, gates, chosen = run(router, Intervention(sample=True), x=x)
    scores = logits[0].sigmoid() if name == "DeepseekV3TopkRouter" else logits[0].softmax(-1)
    share = torch.bincount(chosen.flatten(), minlength=E) / len(chosen)
    torch.testing.assert_close(share, scores / scores.sum(), atol=0.01, rtol=0)
    if name == "DeepseekV3TopkRouter":
        assert torch.equal(gates, scores[chosen])
    more = run(filled(stock_router(name)), Intervention(sample=True))[2]
    assert all(len(set(row)) == K for row in more.tolist())


@pytest.mark.parametrize("name", ["MixtralTopKRouter", "GraniteMoeTopKRouter", "DeepseekV3TopkRouter"])
def test_sampling_fades_into_the_plain_choice(name: str) -> None:
    router, x = filled(stock_router(name)), tokens()
    plain = run(router, None, x=x)[2].sort(-1).values

    def chosen(scale: float, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(seed)
        return run(router, Intervention(sample=scale), x=x)[2].sort(-1).values

    assert torch.equal(chosen(0), plain)
    assert torch.equal(chosen(1), chosen(True))
    flipped = [(chosen(scale) != plain).any(-1).float().mean().item() for scale in (0, 0.01, 0.1, 0.3, 1)]
    assert flipped == sorted(flipped)
    assert flipped[1] < 0.2 < 0.5 < flipped[-1]


@pytest.mark.parametrize("scale", [0.25, 0.5])
def test_half_the_noise_samples_by_the_square_of_the_probabilities(scale: float) -> None:
    """argmax(log p + s g) with Gumbel g is a sample of p^(1/s), normalised."""
    weight = torch.randn(E, D) * 0.05
    logits, _, chosen = route(
        tokens()[:1].expand(40_000, D), weight, None, GateSpec(E, 1), Intervention(sample=scale), training=True
    )
    share = torch.bincount(chosen.flatten(), minlength=E) / len(chosen)
    torch.testing.assert_close(share, (logits[0] / scale).softmax(-1), atol=0.01, rtol=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", MODULES)
def test_another_number_of_experts_gives_equal_experts_the_same_weight(name: str, options: dict[str, Any]) -> None:
    """With equal logits, whatever the router does with its gates: copies compute what they did with K."""
    router = filled(stock_router(name, **options))
    spec, x = gate_spec(router), tokens()
    with torch.no_grad():
        router_weight(router).copy_(router_weight(router)[:1].expand_as(router_weight(router)).clone())
    total = run(router, None, x=x)[1].sum(-1)
    for top_k in (1, 3, spec.most):
        logits, gates, chosen = run(router, Intervention(top_k=top_k), x=x)
        assert chosen.shape == gates.shape == (T, top_k)
        assert all(len(set(row)) == top_k for row in chosen.tolist())
        torch.testing.assert_close(gates.sum(-1), total, rtol=0, atol=1e-3)  # LFM2 adds an epsilon of 1e-6
        assert torch.equal(route(x, router_weight(router), None, spec, Intervention(top_k=top_k))[0], logits)


def test_another_number_of_experts_acts_in_training_only() -> None:
    router = filled(stock_router("Glm4MoeTopkRouter"))
    act = Intervention(top_k=E)
    assert run(router, act)[2].shape[-1] == E
    assert route(tokens(), router.weight, selection_bias(router), gate_spec(router), act)[2].shape[-1] == K


@pytest.mark.parametrize("name", ["Qwen3MoeTopKRouter", "GraniteMoeTopKRouter", "Glm4MoeTopkRouter"])
def test_dropped_experts_are_never_chosen_and_gates_are_of_the_rest(name: str) -> None:
    router = filled(stock_router(name))
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        logits, gates, chosen = run(router, Intervention(expert_dropout=0.7))
        used = chosen.unique()
        assert K <= len(used) <= E
        seen.add(tuple(used.tolist()))
        assert torch.isfinite(gates).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(T))
        assert torch.equal(logits, router(tokens())[0])
        if len(used) == K and name == "Qwen3MoeTopKRouter":
            rest = logits[:, used].softmax(-1)
            torch.testing.assert_close(gates.gather(-1, chosen.argsort(-1)), rest)
    assert len(seen) > 10


def test_dropout_takes_as_many_as_it_says_and_leaves_enough_in_every_group() -> None:
    router = filled(stock_router("DeepseekV3TopkRouter", **OPTIONS["groups"]))
    torch.manual_seed(0)
    for _ in range(30):
        *_, chosen = run(router, Intervention(expert_dropout=0.9))
        assert all(len(set(row)) == K and len({e // 2 for e in row}) == 2 for row in chosen.tolist())
    spec = GateSpec(experts=100, top_k=1)
    weight = torch.randn(100, D)
    used = [
        len(
            route(torch.randn(5000, D), weight, None, spec, Intervention(expert_dropout=0.8), training=True)[2].unique()
        )
        for _ in range(20)
    ]
    assert 15 < sum(used) / 20 < 25
    spec = GateSpec(experts=E, top_k=2, renormalise=False)  # scores of a router without the others
    _, gates, _ = route(tokens(), weight[:E], None, spec, Intervention(expert_dropout=0.99), training=True)
    torch.testing.assert_close(gates.sum(-1), torch.ones(T))


@pytest.mark.parametrize(
    "act", [{"noise": 1.0}, {"sample": True}, {"expert_dropout": 0.6}, {"noise": "learned"}], ids=str
)
def test_draws_shared_by_a_group_leave_it_whole(act: dict[str, Any]) -> None:
    weight = torch.randn(E // 2, D).repeat_interleave(2, dim=0)
    noise_weight = torch.randn(E // 2, D).repeat_interleave(2, dim=0)
    torch.manual_seed(0)
    for granularity in (1, 2):
        intervention = Intervention(**act, granularity=granularity)
        *_, chosen = route(
            tokens(), weight, None, GateSpec(E, K), intervention, training=True, noise_weight=noise_weight
        )
        pairs = torch.zeros(T, E).scatter_(1, chosen, 1).unflatten(1, (-1, 2)).sum(-1)
        assert bool((pairs == 1).any()) == (granularity == 1)


@pytest.mark.parametrize(
    "name", ["MixtralTopKRouter", "Qwen3MoeTopKRouter", "GraniteMoeTopKRouter", "Glm4MoeTopkRouter"]
)
def test_fp32_is_exact_under_bf16_and_gates_keep_their_type(name: str) -> None:
    router = filled(stock_router(name), torch.bfloat16)
    x = tokens(torch.bfloat16)
    logits, gates, chosen = run(router, Intervention(fp32=True), x=x)
    assert torch.equal(logits, x.float() @ router.weight.float().T)
    assert gates.dtype == router(x)[1].dtype
    with torch.autocast("cpu", torch.bfloat16):
        again, gates, _ = run(router, Intervention(fp32=True), x=x)
    assert torch.equal(again, logits)
    assert chosen.shape == gates.shape == (T, K)


@pytest.mark.parametrize("top_k", [1, 2])
def test_gates_that_never_change_need_no_backward_pass_through_a_frozen_model(top_k: int) -> None:
    x, weight = torch.randn(T, D), torch.randn(E, D, requires_grad=True)
    logits, gates, _ = route(x, weight, None, GateSpec(E, top_k), training=True)
    assert logits.requires_grad  # for losses on the router itself
    assert gates.requires_grad == (top_k > 1)
    gates = route(x.requires_grad_(), weight, None, GateSpec(E, top_k), training=True)[1]
    assert gates.requires_grad
