"""Losses with experts forced and taken out, on models whose answer is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from helpers import dense_llama, moe_of

from smolmoe.evaluation.held_out import HeldOut, cut_windows, document_losses
from smolmoe.probing.ablation import Group, measure_losses, named_groups, owned_groups, single_groups
from smolmoe.probing.similarity import expert_similarity
from smolmoe.results.probe import Similarity

DOMAINS = ["code", "web"]


@cache
def said_by_the_dense_model() -> list[list[int]]:
    """Its likeliest words after twelve beginnings: text that it knows best."""
    ids = torch.tensor([[0, 5 + 20 * index] for index in range(12)])
    with torch.no_grad():
        for _ in range(19):
            ids = torch.cat([ids, dense_llama()(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return [row[1:] for row in ids.tolist()]


def held_out(documents: int = 12) -> HeldOut:
    tags = [DOMAINS[index % 2] for index in range(documents)]
    return cut_windows(said_by_the_dense_model()[:documents], tags, length=16, start=0, budget=10_000, per_document=100)


@torch.no_grad()
def moe_with_broken(expert: int) -> Any:
    """Copies of the dense FFN, but for one expert that gives the opposite."""
    moe = moe_of(dense_llama(), experts=4, top_k=2)
    for layer in moe.model.layers:
        layer.mlp.experts.down_proj[expert] *= -1
    return moe


def groups() -> list[Group]:
    return named_groups(["code", "web", None, None], [0, 1], DOMAINS, None)


def test_groups_by_name() -> None:
    found = named_groups(["code", "web", "code", None, "poems"], [0, 1, 2], DOMAINS, [1, 2])
    assert [(group.label, group.domain) for group in found] == [
        ("code", "code"),
        ("web", "web"),
        ("poems", None),
        ("expert 3", None),
    ]
    assert found[0].experts == {1: (0, 2), 2: (0, 2)}


def test_groups_by_owner_take_the_favourite_where_nothing_is_owned() -> None:
    code, web = owned_groups([[0, 1, 0], [1, 1, None]], [[0, 1], [2, 1]], [3, 5], DOMAINS)
    assert (code.label, code.experts) == ("experts of code", {3: (0, 2), 5: (2,)})
    assert web.experts == {3: (1,), 5: (0, 1)}


def test_copies_lose_nothing() -> None:
    dense = dense_llama()
    moe = moe_of(dense, experts=4, top_k=2)
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4, dense=dense)
    expected = document_losses(dense, held_out()).by_domain
    assert found.base == pytest.approx(expected, abs=1e-5)
    assert found.dense == pytest.approx(expected)
    for index, domain in enumerate(DOMAINS):
        assert found.forced[index] == pytest.approx([expected[domain]] * 4, abs=1e-5)
        assert found.knocked_out[index] == pytest.approx([expected[domain]] * 4, abs=1e-5)
    assert found.own == [0, 1]
    assert found.tokens == {"code": 120, "web": 120}
    assert not any("worse" in flag for flag in found.flags)


def test_a_broken_expert_is_flagged_in_its_domain_only() -> None:
    dense, moe = dense_llama(), moe_with_broken(1)
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4, dense=dense)
    assert found.forced[1][1] > found.forced[1][0] + 0.01
    assert found.forced[1][0] == pytest.approx(found.dense["web"] if found.dense else 0, abs=1e-5)
    assert found.knocked_out[1][1] == pytest.approx(found.forced[1][0], abs=1e-5)
    worse = [flag for flag in found.flags if "makes this domain worse" in flag]
    assert len(worse) == 1
    assert worse[0].startswith("web: forced to its own experts (web)")
    assert "over 6 documents: its specialisation makes this domain worse." in worse[0]
    assert "lower for web (-" in found.summary[0]
    assert "higher for code (+" in found.summary[1]
    assert any(flag.startswith("web: without its own experts (web)") for flag in found.flags)
    assert any(flag.startswith("code: its loss is") and "the dense model's" in flag for flag in found.flags)


def test_an_expert_that_others_need_more_is_flagged() -> None:
    """All but expert 0 give the opposite, and code is what it is named after; web loses as much."""
    moe = moe_with_broken(1)
    with torch.no_grad():
        for layer in moe.model.layers:
            layer.mlp.experts.down_proj[2:] *= -1
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4)
    harm = [found.knocked_out[index][0] - found.base[domain] for index, domain in enumerate(DOMAINS)]  # type: ignore[operator]
    says_so = any(flag.startswith("code: taking its own experts (code) out hurts web more") for flag in found.flags)
    assert min(harm) > 0
    assert says_so == (harm[1] > harm[0])


@pytest.mark.parametrize("documents", [2, 4, 10])
def test_few_documents_give_no_finding(documents: int) -> None:
    """One to five of each domain, with losses that are far apart: nothing is said but the numbers."""
    found = measure_losses(moe_with_broken(1), held_out(documents), DOMAINS, groups(), 4, dense=dense_llama())
    each = documents // 2
    assert found.flags == [f"Too few documents for a finding (code {each}, web {each}; at least 6 of each domain)."]
    said = " ".join(found.summary)
    assert said.count("too few documents for a finding (at least 6) for code (") == 2
    assert "lower" not in said
    assert "higher" not in said


def similarity(moe: Any) -> Similarity:
    torch.manual_seed(0)
    return expert_similarity(moe, [torch.randn(64, dense_llama().config.hidden_size) for _ in range(2)], 4)


def test_copies_are_said_to_be_copies_first_and_nothing_is_claimed_for_them() -> None:
    moe = moe_of(dense_llama(), experts=4, top_k=2)
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4, similarity=similarity(moe), layers=[0, 1])
    first = "In every layer all 4 experts are copies of each other (cosine of their outputs at least 0.99999): "
    assert found.flags == [f"{first}no specialisation is claimed for copies."]
    assert found.copied == DOMAINS
    assert found.summary[0].endswith("not judged for code and web, whose own experts are copies of others.")


@torch.no_grad()
def test_experts_that_differ_a_little_are_no_copies() -> None:
    """As after a short training of a pretrained model: almost equal outputs, and the losses say what that is worth."""
    moe = moe_of(dense_llama(), experts=4, top_k=2)
    torch.manual_seed(0)
    for layer in moe.model.layers:
        down = layer.mlp.experts.down_proj
        down += 0.02 * down.std() * torch.randn_like(down)
    alike = similarity(moe)
    assert 0.999 < min(map(min, alike.output_cosine[0])) < 0.99999
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4, similarity=alike, layers=[0, 1])
    assert found.copied == []
    assert "copies" not in " ".join([*found.flags, *found.summary])


@torch.no_grad()
def test_an_expert_of_its_own_is_judged_beside_copies() -> None:
    moe = moe_of(dense_llama(), experts=4, top_k=2)
    torch.manual_seed(0)
    for layer in moe.model.layers:
        layer.mlp.experts.gate_up_proj[1] = 0.5 * torch.randn_like(layer.mlp.experts.gate_up_proj[1])
    found = measure_losses(moe, held_out(), DOMAINS, groups(), 4, similarity=similarity(moe), layers=[0, 1])
    assert found.flags[0].startswith("Some experts are copies of each other (layer 0: 0, 2 and 3, layer 1: 0, 2 and 3)")
    assert found.copied == ["code"]
    assert any(flag.startswith("web: forced to its own experts (web)") for flag in found.flags)
    assert not any(flag.startswith("code:") for flag in found.flags)


def test_what_leaves_nothing_is_not_measured() -> None:
    moe = moe_of(dense_llama(), experts=4, top_k=2)
    everything = [Group("all", {0: (0, 1, 2, 3)}), *single_groups([3], [0, 1])]
    found = measure_losses(moe, held_out(), DOMAINS, everything, 4)
    assert [row[0] for row in found.knocked_out] == [None, None]
    assert found.own == [None, None]
    assert found.flags == []
