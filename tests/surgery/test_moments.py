"""Adam's moments across the boundary: they lie where the weights lie, and training goes on as the dense one would."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import zoo
from tests.helpers import edit_tensors
from tests.surgery.test_request import plan

from smolmoe.errors import CheckpointError, RequestError
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.surgery.convert import convert
from smolmoe.surgery.moments import Moments, carry_moments, learning_rate_scales, plan_of

ADAMW = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.1}


def converted(out: Path, name: str = "llama", **options: Any) -> Any:
    made = plan(name, **options)
    object.__setattr__(made.recipe, "out", out)
    convert(made)
    return made


def state_of_weights(model: Any) -> dict[str, Moments]:
    """m = w and v = w^2: what carries them must put them where w went."""
    return {n: Moments(p.detach(), p.detach() ** 2, 7) for n, p in model.named_parameters()}


# -- places and factors ----------------------------------------------------------------------------------------

# What m' / w' and v' / w'^2 must be, worked out by hand: rho c / s and rho c^2 / s^2 with s the scale of w' itself.
BY_HAND: list[tuple[str, dict[str, Any], dict[str, tuple[float, float]]]] = [
    (  # rho 1/4, c 1/2
        "llama",
        {"experts": 8, "top_k": 2},
        {"gate_up_proj": (1 / 8, 1 / 16), "experts.down_proj": (1 / 8, 1 / 16)},
    ),
    (  # rho 1/2; c 1/4 on down, which is scaled by 4, so 1 on gate and up
        "llama",
        {"experts": 8, "top_k": 4, "granularity": 4},
        {"gate_up_proj": (1 / 2, 1 / 2), "experts.down_proj": (1 / 8 / 4, 1 / 32 / 16)},
    ),
    (  # both down projections by 1/2
        "llama_attention_bias",
        {"experts": 4, "top_k": 2, "shared": "full", "target": "granitemoeshared"},
        {
            "experts.gate_up_proj": (1 / 8, 1 / 32),
            "experts.down_proj": (1 / 4 * 2, 1 / 8 * 4),
            "shared_mlp.input_linear": (1 / 2, 1 / 4),
            "shared_mlp.output_linear": (2, 4),
        },
    ),
    (  # the shared expert behind a gate of 1/2, its down scaled by 1
        "qwen2",
        {"experts": 4, "top_k": 2, "shared": "full", "target": "qwen2_moe"},
        {
            "experts.gate_up_proj": (1 / 8, 1 / 32),
            "experts.down_proj": (1 / 4 * 2, 1 / 8 * 4),
            "shared_expert.gate_proj": (1 / 2, 1 / 4),
            "shared_expert.up_proj": (1 / 2, 1 / 4),
            "shared_expert.down_proj": (1 / 2, 1 / 4),
        },
    ),
    (  # biases: of down halved twice, of up like up
        "gpt2",
        {"experts": 4, "top_k": 2, "shared": "full", "granularity": 2},
        {
            "experts.up_proj": (1 / 4, 1 / 8),
            "experts.down_proj_bias": (1 / 4 * 2, 1 / 8 * 4),
            "experts.down_proj": (1 / 4, 1 / 8),
            "shared_expert.up": (1 / 2, 1 / 4),
            "shared_expert.down": (2, 4),
        },
    ),
    (
        "phi3",
        {"experts": 6, "top_k": 3, "granularity": 3},
        {"gate_up_proj": (1 / 2, 1 / 2), "experts.down_proj": (1 / 6 / 3, 1 / 18 / 9)},
    ),
    (  # rho 1/8, c 1: the gate at the start
        "llama_untied",
        {"experts": 8, "top_k": 1, "shared": 24, "gates": "independent"},
        {"shared_experts": (1, 1), "experts.gate_up_proj": (1 / 8, 1 / 8), "experts.down_proj": (1 / 8, 1 / 8)},
    ),
    (  # rho 1/2, c 1/4: half of two gates of 1/2 each
        "llama_untied",
        {"experts": 4, "top_k": 2, "shared": "full", "gates": "independent", "target": "glm4_moe"},
        {
            "shared_experts.gate_proj": (1 / 2, 1 / 4),
            "shared_experts.up_proj": (1 / 2, 1 / 4),
            "shared_experts.down_proj": (2, 4),
            "experts.gate_up_proj": (1 / 8, 1 / 32),
            "experts.down_proj": (1 / 8, 1 / 32),
        },
    ),
    (  # rho 1/4; gates of 1 hold the factor of 2 that renormalised ones leave to down
        "gpt2",
        {"experts": 8, "top_k": 2, "granularity": 2, "subsets": "complementary", "gates": "independent"},
        {"experts.up_proj": (1 / 4, 1 / 4), "experts.down_proj_bias": (1 / 2, 1), "experts.down_proj": (1 / 4, 1 / 4)},
    ),
    (  # rho 1/4, c 1/2 on down, which is scaled by 2, so 1 on gate and up
        "phi3",
        {"experts": 8, "top_k": 2, "granularity": 2, "subsets": "random"},
        {"gate_up_proj": (1 / 4, 1 / 4), "experts.down_proj": (1 / 8 / 2, 1 / 16 / 4)},
    ),
    (  # the routed experts' down starts at 0
        "llama_untied",
        {"experts": 4, "top_k": 2, "shared": "residual", "target": "glm4_moe", "layers": "all"},
        {"shared_experts": (1, 1)},
    ),
]


@pytest.mark.parametrize(("name", "options", "by_hand"), BY_HAND)
def test_moments_lie_where_the_weights_lie(
    name: str, options: dict[str, Any], by_hand: dict[str, tuple[float, float]], tmp_path: Path
) -> None:
    made = converted(tmp_path / "moe", name, **options)
    carried = carry_moments(made, state_of_weights(load_model(zoo.folder(name))))
    loaded = dict(load_model(tmp_path / "moe").named_parameters())
    used = set()
    for parameter, moments in carried.items():
        key = next((key for key in by_hand if key in parameter), None)
        used.add(key)
        m, v = by_hand[key] if key else (1.0, 1.0)
        weight = loaded[parameter]
        torch.testing.assert_close(moments.exp_avg, m * weight, msg=parameter)
        torch.testing.assert_close(moments.exp_avg_sq, v * weight**2, msg=parameter)
        assert moments.step == 7
    assert used == {None, *by_hand}
    routed = "experts.gate_up_proj", "experts.down_proj"
    fresh = (".gate.", "router", "shared_expert_gate", *(routed if options.get("shared") == "residual" else ()))
    for parameter in set(loaded) - set(carried):
        assert any(word in parameter for word in fresh) or parameter.endswith("proj.bias"), parameter


def test_names_in_memory_are_asked_for_where_the_files_have_others(tmp_path: Path) -> None:
    """Files of gpt2 lack the backbone's prefix; its optimiser does not."""
    model = zoo.build("gpt2")
    zoo.save(model, tmp_path / "dense")
    edit_tensors(
        tmp_path / "dense",
        lambda tensors: tensors.update(
            {name.removeprefix("transformer."): tensors.pop(name) for name in list(tensors)}
        ),
    )
    carried = carry_moments(plan(source=str(tmp_path / "dense")), state_of_weights(model))
    usual = carry_moments(plan("gpt2"), state_of_weights(model))
    assert carried.keys() == usual.keys()
    assert all(torch.equal(carried[name].exp_avg, usual[name].exp_avg) for name in usual)


def test_experts_may_be_left_fresh(tmp_path: Path) -> None:
    made, state = plan(shared="full"), state_of_weights(load_model(zoo.folder("llama")))
    rest, whole = carry_moments(made, state, experts=False), carry_moments(made, state)
    assert {name for name in whole if name not in rest} == {t.memory for t in made.tensors if t.role == "expert"}


@pytest.mark.parametrize(
    ("name", "options", "scales"),
    [
        ("llama", {}, {}),
        ("llama", {"granularity": 2}, {"experts.down_proj": 2}),
        ("llama", {"shared": "full", "target": "granitemoeshared"}, {"experts.down_proj": 0.5, "output_linear": 0.5}),
        ("qwen2", {"shared": "residual", "target": "qwen2_moe"}, {"shared_expert.down_proj": 2}),
    ],
)
def test_learning_rates_follow_the_scales(name: str, options: dict[str, Any], scales: dict[str, float]) -> None:
    found = learning_rate_scales(plan(name, **options))
    assert len(found) == zoo.LAYERS * len(scales)
    for parameter, scale in found.items():
        assert scale == next(value for key, value in scales.items() if key in parameter)


def test_a_low_rank_difference_of_its_own_for_every_expert(tmp_path: Path) -> None:
    made = converted(tmp_path / "moe", "llama", experts=4, diversify="lora", lora_rank=3, lora_std=0.01)
    moe, dense = load_model(tmp_path / "moe"), load_model(zoo.folder("llama"))
    difference = (
        moe.model.layers[1].mlp.experts.down_proj.detach() - dense.model.layers[1].mlp.down_proj.weight.detach()
    )
    for one in difference:
        values = torch.linalg.svdvals(one)
        assert values[2] > 100 * values[3]  # the rest is rounding
        assert float(one.std()) == pytest.approx(0.01, rel=0.3)
    assert not torch.allclose(difference[0], difference[1])
    state = state_of_weights(dense)
    carried = carry_moments(made, state)["model.layers.1.mlp.experts.down_proj"].exp_avg[2]
    torch.testing.assert_close(carried, state["model.layers.1.mlp.down_proj.weight"].exp_avg / 4)


def test_neurons_drawn_anew_start_with_the_mean_of_the_others() -> None:
    made = plan(diversify="drop", drop_ratio=0.25, seed=3)
    state = {
        n: replace(s, exp_avg_sq=torch.rand_like(s.exp_avg))
        for n, s in state_of_weights(load_model(zoo.folder("llama"))).items()
    }
    carried = carry_moments(made, state)
    stem = "model.layers.1.mlp."
    named = {t.name: t for t in made.tensors}
    for expert in (0, 5):
        perturb = named[f"model.layers.1.block_sparse_moe.experts.{expert}.w1.weight"].blocks[0].perturb
        fresh = perturb.fresh(zoo.F, 3)
        kept = [i for i in range(zoo.F) if i not in fresh]
        into, out = carried[f"{stem}experts.gate_up_proj"], carried[f"{stem}experts.down_proj"]
        gate, down = state[f"{stem}gate_proj.weight"], state[f"{stem}down_proj.weight"]
        assert not into.exp_avg[expert, fresh].any()
        assert not out.exp_avg[expert][:, fresh].any()
        mean = gate.exp_avg_sq.mean(0) / 16
        torch.testing.assert_close(into.exp_avg_sq[expert, fresh], mean.expand(len(fresh), -1))
        mean = down.exp_avg_sq.mean(1, keepdim=True) / 16
        torch.testing.assert_close(out.exp_avg_sq[expert][:, fresh], mean.expand(-1, len(fresh)))
        torch.testing.assert_close(into.exp_avg[expert, kept], gate.exp_avg[kept] / 8)
        torch.testing.assert_close(out.exp_avg_sq[expert][:, kept], down.exp_avg_sq[:, kept] / 16)


# -- training goes on ------------------------------------------------------------------------------------------


def optimiser(model: Any, scales: dict[str, float], state: dict[str, Moments]) -> torch.optim.AdamW:
    """AdamW over the parameters that need gradients, each with its rate and state."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decay = ADAMW["weight_decay"]
    groups = [
        {"params": [p], "lr": ADAMW["lr"] * scales.get(n, 1.0), "weight_decay": decay / scales.get(n, 1.0)}
        for n, p in named.items()
    ]
    adam = torch.optim.AdamW(groups, **ADAMW)
    for name, s in state.items():
        values = {"exp_avg": s.exp_avg.to(named[name].dtype), "exp_avg_sq": s.exp_avg_sq.to(named[name].dtype)}
        adam.state[named[name]] = {key: v.clone() for key, v in values.items()} | {"step": torch.tensor(s.step)}
    return adam


def state_in(model: Any, adam: torch.optim.AdamW) -> dict[str, Moments]:
    found = {name: adam.state[p] for name, p in model.named_parameters() if p in adam.state}
    return {n: Moments(s["exp_avg"].float(), s["exp_avg_sq"].float(), float(s["step"])) for n, s in found.items()}


def train(model: Any, adam: torch.optim.AdamW, data: Any) -> list[float]:
    losses = []
    for batch in data:
        adam.zero_grad()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


@functools.cache
def trained(name: str, folder: Path) -> dict[str, Moments]:
    """A model of the zoo, trained for some steps and saved; its optimiser's state."""
    model = zoo.build(name)
    adam = optimiser(model, {}, {})
    train(model, adam, torch.randint(300, (10, 4, 16), generator=torch.Generator().manual_seed(1)))
    zoo.save(model, folder)
    return state_in(model, adam)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"experts": 1, "top_k": 1}),
        ("llama", {"experts": 2, "top_k": 2, "granularity": 2}),
        ("llama", {"experts": 2, "top_k": 2, "granularity": 2, "shared": "full", "target": "granitemoeshared"}),
        ("qwen2_untied", {"experts": 2, "top_k": 2, "granularity": 2, "shared": 16, "target": "qwen2_moe"}),
        ("gpt2", {"experts": 2, "top_k": 2, "granularity": 2, "shared": "full"}),
        ("phi3", {"experts": 2, "top_k": 2, "granularity": 2}),  # split matrices
        ("helium_bias", {"experts": 2, "top_k": 2, "granularity": 2, "shared": "full"}),  # reordered rows
    ],
)
def test_experts_that_are_always_on_train_as_the_dense_model_does(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Every share is 1 and every gate fixed, so that nothing is approximate: the losses are the dense model's."""
    state = trained(name, tmp_path / "dense")
    made = converted(tmp_path / "moe", source=str(tmp_path / "dense"), **options)
    data = torch.randint(300, (4, 4, 16), generator=torch.Generator().manual_seed(2))
    dense = load_model(tmp_path / "dense").double()
    expected = train(dense, optimiser(dense, {}, state), data)

    def continued(carried: dict[str, Moments], scales: dict[str, float]) -> list[float]:
        moe = load_model(tmp_path / "moe").double()
        moe.set_experts_implementation("eager")
        for parameter, tensor in moe.named_parameters():
            tensor.requires_grad_(parameter in whole)
        return train(moe, optimiser(moe, scales, carried), data)

    whole = carry_moments(made, state)
    scales = learning_rate_scales(made)
    assert continued(whole, scales) == pytest.approx(expected, rel=1e-7)
    assert continued({}, scales)[1:] != pytest.approx(expected[1:], rel=1e-3)
    if scales:
        assert continued(whole, {})[-1] != pytest.approx(expected[-1], rel=1e-5)


# -- real gradients --------------------------------------------------------------------------------------------

SMALL = "models/stories260K"


@functools.cache
def stories(shared: Path) -> torch.Tensor:
    """[21 batches, 4, 64] tokens of stories, which is what the model was trained on."""
    rows = (json.loads(line) for line in (shared / "data/mix/train.jsonl").read_text(encoding="utf-8").splitlines())
    text = "\n".join(row["text"] for row in rows if row["domain"] == "stories")[:60_000]
    tokens = load_tokenizer(shared / SMALL)(text, verbose=False)["input_ids"]
    return torch.tensor(tokens[: 21 * 4 * 64]).view(21, 4, 64)


def gradients(model: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def averages(model: Any, data: torch.Tensor) -> dict[str, Moments]:
    """Means over batches of the gradients and of their squares."""
    every = [gradients(model, batch) for batch in data]
    stacks = {name: torch.stack([one[name] for one in every]) for name in every[0]}
    return {name: Moments(g.mean(0), g.square().mean(0), 1000) for name, g in stacks.items()}


@functools.cache
def dense_averages(shared: Path) -> dict[str, Moments]:
    return averages(load_model(shared / SMALL), stories(shared)[:20])


@pytest.mark.parametrize(
    ("options", "low"),
    [
        ({}, 0.9),
        ({"shared": "full"}, 0.9),
        ({"shared": 84, "granularity": 2}, 0.85),
        # Rows that tell tokens apart and leave every gate at its value at zero logits.
        ({"shared": 84, "top_k": 1, "gates": "independent", "router_std": 1e-6}, 0.85),
    ],
)
def test_real_gradients_are_as_predicted(options: dict[str, Any], low: float, shared: Path, tmp_path: Path) -> None:
    source, data = shared / SMALL, stories(shared)[:20]
    made = converted(tmp_path / "moe", source=str(source), experts=8, **options)
    carried = carry_moments(made, dense_averages(shared))
    measured = averages(load_model(tmp_path / "moe"), data)
    for name, predicted in carried.items():
        m, v = measured[name].exp_avg, measured[name].exp_avg_sq
        stacked = ".experts." in name
        over_experts = [
            x.unflatten(0, (-1, made.layout.granularity)).sum(0) if stacked else x for x in (m, predicted.exp_avg)
        ]
        torch.testing.assert_close(*over_experts, rtol=1e-3, atol=1e-6, msg=name)
        ratio = float(v.sum() / predicted.exp_avg_sq.sum())
        assert (low < ratio < 1.03) if stacked else ratio == pytest.approx(1, rel=1e-3), name


def real_state(shared: Path, count: int = 20) -> tuple[Any, dict[str, Moments]]:
    """The dense model after AdamW saw its gradients without moving it, and that AdamW's state."""
    dense = load_model(shared / SMALL)
    adam = optimiser(dense, {}, {})
    for group in adam.param_groups:
        group["lr"] = 0.0
    train(dense, adam, stories(shared)[:count])
    return dense, state_in(dense, adam)


def without_router(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("gate.weight" not in name)
    return model


def test_one_step_of_copies_is_the_dense_step(shared: Path, tmp_path: Path) -> None:
    """All but the experts moves as in the dense model; the experts' first moments still sum to the dense one."""
    dense, state = real_state(shared)
    made = converted(tmp_path / "moe", source=str(shared / SMALL), experts=8)
    moe = without_router(load_model(tmp_path / "moe"))
    batch = stories(shared)[20:]
    ours, theirs = optimiser(moe, {}, carry_moments(made, state)), optimiser(dense, {}, state)
    train(moe, ours, batch)
    train(dense, theirs, batch)
    moved, moments, dense_moments = dict(moe.named_parameters()), state_in(moe, ours), state_in(dense, theirs)
    for name, parameter in dense.named_parameters():
        if ".mlp." not in name:
            torch.testing.assert_close(moved[name], parameter, rtol=0, atol=3e-6, msg=name)
    for layer in range(5):
        stem = f"model.layers.{layer}.mlp."
        summed = moments[f"{stem}experts.gate_up_proj"].exp_avg.sum(0)
        separate = [dense_moments[f"{stem}{slot}_proj.weight"].exp_avg for slot in ("gate", "up")]
        torch.testing.assert_close(summed, torch.cat(separate), rtol=1e-3, atol=1e-6)


def first_moves(folder: Path, batch: torch.Tensor, state: dict[str, Moments]) -> dict[str, torch.Tensor]:
    """Absolute first update of every expert stack, in learning rates, weight decay aside."""
    moe = without_router(load_model(folder))
    before = {name: p.detach().clone() for name, p in moe.named_parameters() if ".experts." in name}
    adam = optimiser(moe, {}, state)
    for group in adam.param_groups:
        group["weight_decay"] = 0.0
    train(moe, adam, batch)
    named = dict(moe.named_parameters())
    return {name: (named[name].detach() - old).abs() / ADAMW["lr"] for name, old in before.items()}


def test_first_steps_are_short(shared: Path, tmp_path: Path) -> None:
    """Carried entries move less than fresh ones do; entries drawn anew would move 3.2 learning rates with v = 0."""
    _, state = real_state(shared)
    # As after a long run: v without its correction for having started at 0 twenty steps ago.
    state = {n: replace(s, exp_avg_sq=s.exp_avg_sq / (1 - 0.999**s.step), step=10_000) for n, s in state.items()}
    made = converted(tmp_path / "moe", source=str(shared / SMALL), experts=8, diversify="drop")
    carried, batch = carry_moments(made, state), stories(shared)[20:]
    empty = {n: replace(s, exp_avg_sq=s.exp_avg_sq * (s.exp_avg != 0)) for n, s in carried.items()}
    long, fresh = first_moves(tmp_path / "moe", batch, empty), first_moves(tmp_path / "moe", batch, {})
    for name, short in first_moves(tmp_path / "moe", batch, carried).items():
        new = (carried[name].exp_avg == 0) & (fresh[name] > 0.5)  # with a gradient, and no state to start from
        assert long[name][new].median() == pytest.approx(3.16, abs=0.01)
        assert fresh[name][new].median() == pytest.approx(1.0, abs=0.01)
        assert short[new].mean() < 0.5
        assert short.mean() < 0.5


# -- what is refused -------------------------------------------------------------------------------------------


def test_a_merge_has_no_moments() -> None:
    other = str(zoo.folder("llama", seed=1))
    state = state_of_weights(load_model(zoo.folder("llama")))
    for attention in ("average", "base"):
        with pytest.raises(RequestError, match="no dense run"):
            carry_moments(plan(expert={"a": other, "b": other}, attention=attention), state)


def test_state_that_is_not_of_the_source_is_refused() -> None:
    made, state = plan(), state_of_weights(load_model(zoo.folder("llama")))
    name = "model.layers.2.mlp.up_proj.weight"
    with pytest.raises(RequestError, match="no state") as caught:
        carry_moments(made, {key: value for key, value in state.items() if key != name})
    assert caught.value.value == name
    with pytest.raises(RequestError, match=r"exp_avg_sq has shape \(48, 31\)"):
        carry_moments(made, state | {name: replace(state[name], exp_avg_sq=torch.ones(48, 31))})
    with pytest.raises(RequestError, match="different step counts"):
        carry_moments(made, state | {name: replace(state[name], step=8)})


@pytest.mark.parametrize("options", [{"diversify": "drop", "seed": 5}, {"shared": 16, "granularity": 2, "layers": "1"}])
def test_the_plan_is_found_again(options: dict[str, Any], tmp_path: Path) -> None:
    made = converted(tmp_path / "moe", "llama_mlp_bias", **options)
    found = plan_of(tmp_path / "moe")
    assert found.tensors == made.tensors
    assert found.layout == made.layout
    assert found.recipe.seed == made.recipe.seed


def test_the_plan_is_not_found_again_for_other_weights(tmp_path: Path) -> None:
    zoo.build("llama").save_pretrained(tmp_path / "dense")
    converted(tmp_path / "moe", source=str(tmp_path / "dense"))
    zoo.build("llama", seed=1).save_pretrained(tmp_path / "dense")
    with pytest.raises(CheckpointError, match="has changed since"):
        plan_of(tmp_path / "moe")
    with pytest.raises(CheckpointError, match=r"no smolmoe\.json"):
        plan_of(tmp_path / "dense")
