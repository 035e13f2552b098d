"""Forcing experts and knocking them out, in every class of router we know how to make."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers import MOE_CONFIGS, random_moe
from tests.moe.other_moes import OTHER_MOES, UNREADABLE, other_moe

from smolmoe.errors import RequestError, SourceError
from smolmoe.moe.control import control_routers
from smolmoe.moe.gating import GateSpec, Intervention, route
from smolmoe.moe.restrict import only_experts, why_not_restricted, without_experts
from smolmoe.moe.routing import RoutingCapture, find_routers

KINDS = sorted(MOE_CONFIGS)


def ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))


def routings(model, layers_mask):
    with torch.no_grad(), only_experts(model, layers_mask), RoutingCapture(model) as capture:
        logits = model(ids()).logits
    return logits, {layer: capture.routing(layer) for layer in capture.layers}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_expert_gets_every_gate(kind):
    model = random_moe(kind).eval()
    layers = [layer for layer, _ in find_routers(model)]
    _, found = routings(model, {layer: [2] for layer in layers})
    for routing in found.values():
        is_forced = routing.indices == 2
        assert is_forced.any(1).all()
        assert (routing.weights[~is_forced] == 0).all()
        assert not routing.weights.isnan().any()
        scale = getattr(find_routers(model)[0][1], "routed_scaling_factor", 1.0)
        torch.testing.assert_close(
            routing.weights.sum(1).float(), torch.full((len(routing.indices),), float(scale)), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_knocked_out_expert_is_never_chosen_and_tokens_that_did_not_choose_it_keep_their_experts(kind):
    model = random_moe(kind).eval()
    first = find_routers(model)[0][0]  # its input is the same with and without
    layers = [layer for layer, _ in find_routers(model)]
    with torch.no_grad(), RoutingCapture(model) as capture:
        logits = model(ids()).logits
    plain = capture.routing(first)
    with torch.no_grad(), without_experts(model, {layer: [1] for layer in layers}), RoutingCapture(model) as capture:
        model(ids())
    assert not any((capture.routing(layer).indices == 1).any() for layer in layers)
    others = ~(plain.indices == 1).any(1)
    assert others.any()
    assert not others.all()
    assert torch.equal(plain.chosen()[others], capture.routing(first).chosen()[others])
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, logits)  # afterwards the routers are whole again


def test_all_experts_available_changes_no_bit():
    model = random_moe("mixtral").eval()
    layers = [layer for layer, _ in find_routers(model)]
    with torch.no_grad():
        plain = model(ids()).logits
    restricted, _ = routings(model, dict.fromkeys(layers, range(4)))
    assert torch.equal(restricted, plain)


def test_it_acts_on_controlled_routers_in_training_too():
    model = random_moe("qwen3_moe").train()
    control_routers(model, Intervention(noise=0.5, expert_dropout=0.5, sample=True))
    layers = [layer for layer, _ in find_routers(model)]
    for _ in range(5):
        _, found = routings(model, {layer: [0, 3] for layer in layers})
        for routing in found.values():
            assert (routing.weights[(routing.indices == 1) | (routing.indices == 2)] == 0).all()
    with RoutingCapture(model) as capture:
        model(ids())
    assert any((capture.routing(layer).indices == 1).any() for layer in layers)


@pytest.mark.parametrize(
    ("available", "field"), [({9: [0]}, "layer"), ({0: [4]}, "experts"), ({0: []}, "experts"), ({0: [-1]}, "experts")]
)
def test_what_is_not_there_is_refused(available, field):
    model = random_moe("mixtral")
    with pytest.raises(RequestError) as caught, only_experts(model, available):
        pass
    assert caught.value.field == field
    assert not hasattr(find_routers(model)[0][1], "smolmoe_available")


def test_restrictions_do_not_nest_and_a_refusal_leaves_the_first_in_place():
    model = random_moe("mixtral").eval()
    with only_experts(model, {0: [1]}):
        with pytest.raises(RequestError), only_experts(model, {0: [2]}):
            pass
        with torch.no_grad(), RoutingCapture(model) as capture:
            model(ids())
        assert (capture.routing(0).indices == 1).any(1).all()


def test_a_lone_expert_is_found_in_its_group_though_others_rank_by_two():
    spec = GateSpec(4, 1, scoring="sigmoid", groups=2, top_groups=1, ordered=False)
    x, weight = torch.eye(4), torch.tensor([[3.0], [3.0], [-3.0], [-3.0]]).expand(4, 4)
    bias = torch.tensor([0.5, 0.5, 0.0, 0.0])
    _, gates, chosen = route(x, weight, bias, spec, available=torch.tensor([False, False, False, True]))
    assert (chosen == 3).all()
    torch.testing.assert_close(gates, torch.ones(4, 1))


# -- routers of classes not known here ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [[2], [0, 3], [0, 1, 3]])
def test_masking_a_router_s_own_forward_is_what_is_known_of_it(kind, left, monkeypatch):
    model = random_moe(kind).eval()
    for _, router in find_routers(model):
        if hasattr(router, "e_score_correction_bias"):  # by which experts that are left out would be the best
            router.e_score_correction_bias.copy_(torch.tensor([0.1, 2.0, 0.0, 0.3])[: router.weight.shape[0]])
    layers = dict.fromkeys((layer for layer, _ in find_routers(model)), left)
    logits, expected = routings(model, layers)
    monkeypatch.setattr("smolmoe.moe.restrict.is_known", lambda router: False)
    masked, found = routings(model, layers)
    torch.testing.assert_close(masked, logits, rtol=1e-4, atol=1e-5)
    for layer, routing in expected.items():
        gates = [
            torch.zeros(routing.logits.shape).scatter_(1, r.indices, r.weights.float()) for r in (routing, found[layer])
        ]
        torch.testing.assert_close(*gates, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OTHER_MOES)
def test_routers_of_unknown_classes_are_read_and_restricted(kind):
    model = other_moe(kind)
    capture = RoutingCapture(model)

    def run(experts=None, removed=None):
        layers = capture.layers
        context = only_experts(model, dict.fromkeys(layers, experts)) if experts else nullcontext()
        context = without_experts(model, dict.fromkeys(layers, removed)) if removed else context
        capture.clear()
        with torch.no_grad(), context, capture:
            return model(ids(), use_cache=False).logits, capture.routing(layers[0])

    logits, plain = run()
    assert plain.indices.shape == plain.weights.shape == (24, plain.top_k)
    everyone = range(plain.experts)
    assert torch.equal(run(everyone)[0], logits)
    forced, routing = run([1])
    assert set(routing.indices[routing.weights != 0].tolist()) == {1}
    assert forced.isfinite().all()
    assert not torch.allclose(forced, logits)
    assert torch.equal(run(removed=[0])[0], run(everyone[1:])[0])
    assert torch.equal(run()[0], logits)  # afterwards the routers are whole again
    assert why_not_restricted(model, capture, ids()) is None


@pytest.mark.parametrize("kind", UNREADABLE)
def test_routers_whose_choices_cannot_be_read_are_named(kind):
    model = other_moe(kind)
    with pytest.raises(SourceError, match="decisions cannot be read"), RoutingCapture(model), torch.no_grad():
        model(ids(), use_cache=False)


def test_a_router_that_goes_its_own_way_is_found_out():
    model = other_moe("gpt_oss")
    for _, router in find_routers(model):
        plain = type(router).forward

        class Stubborn(type(router)):
            def forward(self, x, plain=plain):
                logits, gates, _ = plain(self, x)
                chosen = torch.ones(len(x), 2, dtype=torch.long)
                return logits, gates + 1, chosen + torch.arange(2)

        router.__class__ = Stubborn
    said = why_not_restricted(model, RoutingCapture(model), ids())
    assert said == "the Stubborn of layer 0, restricted to one expert, still chooses others"
