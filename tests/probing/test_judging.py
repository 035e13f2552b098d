"""Routing accuracy of routings made by hand, the linear probe on data whose answer is known, and similarity."""

from __future__ import annotations

import pytest
import torch
from helpers import dense_llama, moe_of, random_moe

from smolmoe.moe.restrict import only_experts
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import find_layers
from smolmoe.probing.accuracy import last_third, learn_owners, named_owners, over_layers, routing_accuracy
from smolmoe.probing.linear import fit_linear_probe
from smolmoe.probing.similarity import expert_outputs, expert_similarity, linear_cka, output_cosine

# First choices of 4 documents of 2 domains in 1 layer of 3 experts.
FIRST = torch.tensor([[[8, 1, 1]], [[4, 5, 1]], [[2, 7, 1]], [[0, 6, 4]]])
LABELS = [0, 0, 1, 1]


def test_accuracy_by_hand() -> None:
    found = routing_accuracy(FIRST, LABELS, [[0, 1, None]], 2)
    assert found.per_token == [[pytest.approx(12 / 20), pytest.approx(13 / 20)]]
    assert found.document_majority == [[pytest.approx(0.5), pytest.approx(1)]]


def test_a_tie_tells_no_document() -> None:
    tie = torch.tensor([[[5, 5, 0]], [[0, 3, 0]]])
    assert routing_accuracy(tie, [0, 1], [[0, 1, None]], 2).document_majority == [[0, 1]]


def test_owner_is_whose_larger_share_it_is_not_who_has_more_text() -> None:
    first = torch.tensor([[[500, 500, 0]], [[1, 9, 0]]])
    assert learn_owners(first, [0, 1], 2) == [[0, 1, None]]


def test_names_count_only_where_every_domain_has_one() -> None:
    assert named_owners(["code", None, "web", "code"], ["code", "web"]) == [0, None, 1, 0]
    assert named_owners(["code", None], ["code", "web"]) is None
    assert named_owners(None, ["code", "web"]) is None


def test_last_third_is_rounded_up() -> None:
    assert [last_third(range(count)) for count in (1, 3, 4, 6)] == [[0], [2], [2, 3], [4, 5]]


def test_over_layers_means_tokens_and_pools_votes() -> None:
    first = torch.cat([FIRST, torch.tensor([[[0, 10, 0]], [[9, 1, 0]], [[0, 10, 0]], [[0, 10, 0]]])], dim=1)
    ceilings = {"router": [[0.5, 1.0], [0.7, 1.0]], "dense": None}
    span = over_layers([0, 1], [3, 5], first, LABELS, [[0, 1, None], [0, 1, None]], ceilings)
    assert span.layers == [3, 5]
    assert span.per_domain == [pytest.approx((12 / 20 + 9 / 20) / 2), pytest.approx((13 / 20 + 1) / 2)]
    assert span.document_majority == [0.5, 1]  # document 0: 8 against 11, document 1: 13 against 6
    assert span.ceiling_per_domain == [pytest.approx(0.6), pytest.approx(1)]
    assert span.dense_ceiling is None


def test_linear_probe_separates_what_is_separable_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 8) * 6
    labels = torch.randint(0, 3, (900,), generator=generator)
    x = torch.randn(900, 8, generator=generator) + centres[labels]
    x = x * torch.tensor([1e-3, 1e3, 1, 1, 1, 1, 1, 1]) + 50  # scales must not matter

    def accuracy(of: torch.Tensor) -> list[float]:
        right = fit_linear_probe(x[:600], of[:600], 3).predict(x[600:]) == of[600:]
        return [right[of[600:] == index].float().mean().item() for index in range(3)]

    assert min(accuracy(labels)) > 0.97
    shuffled = labels[torch.randperm(900, generator=generator)]
    assert sum(accuracy(shuffled)) / 3 == pytest.approx(1 / 3, abs=0.08)


def test_linear_probe_weighs_classes_alike() -> None:
    """Of 20 tokens against 2,000 the few are told as well as the many."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 2000 + [1] * 20)
    x = torch.randn(2020, 1, generator=generator) + 2.0 * labels[:, None]
    probe = fit_linear_probe(x, labels, 2)
    boundary = (probe.bias[0] - probe.bias[1]) / (probe.weight[0, 1] - probe.weight[0, 0])
    assert boundary.item() == pytest.approx(1.0, abs=0.3)


def test_similarity_of_known_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    unlike = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    cka = linear_cka(torch.stack([a, 3 * a @ rotation + 5, unlike]))
    assert cka[0, 1].item() == pytest.approx(1)
    assert cka[0, 2].item() < 0.2
    cosine = output_cosine(torch.stack([a, -2 * a, a]))
    assert cosine[0].tolist() == pytest.approx([1, -1, 1])


def test_copies_are_alike_and_random_experts_are_not() -> None:
    x = [torch.randn(64, 32, generator=torch.Generator().manual_seed(0))] * 2
    copies = expert_similarity(moe_of(dense_llama()), x, 4)
    for matrix in (*copies.cka, *copies.output_cosine, *copies.weight_cosine):
        assert torch.tensor(matrix).min().item() == pytest.approx(1, abs=1e-5)
    unlike = expert_similarity(random_moe("olmoe"), x, 4)
    for matrix in (*unlike.output_cosine, *unlike.weight_cosine):
        assert torch.tensor(matrix).fill_diagonal_(0).abs().max() < 0.3


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_an_experts_output_is_that_of_the_block_forced_to_it(kind: str) -> None:
    model = random_moe(kind)
    (index, router), *_ = find_routers(model)
    layer = find_layers(model)[1][index]
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    outputs = expert_outputs(layer, router, x[0], 4)
    for expert in range(4):
        with only_experts(model, {index: (expert,)}), torch.no_grad():
            assert torch.allclose(layer.mlp(x)[0], outputs[expert], atol=1e-5)


@pytest.mark.parametrize("kind", ["granitemoeshared", "glm4_moe", "flex_olmo", "qwen2_moe", "olmoe"])
def test_experts_of_every_class_can_be_called(kind: str) -> None:
    model = random_moe(kind)
    routers = find_routers(model)
    x = [torch.randn(16, 32, generator=torch.Generator().manual_seed(0))] * len(routers)
    found = expert_similarity(model, x, 4)
    assert torch.tensor(found.cka).diagonal(dim1=1, dim2=2).flatten().tolist() == pytest.approx([1] * 4 * len(routers))
