"""Divergence, information and contrast of routings whose answer is known, and what chance gives."""

from __future__ import annotations

import math

import pytest
import torch

from smolmoe.probing.separation import (
    cell_chance,
    contrast,
    domain_information,
    permutation_baselines,
    separation,
    shares,
    type_information,
    within_type_separation,
)


def test_equal_domains_are_not_apart_and_disjoint_ones_are_one_bit_apart() -> None:
    equal = torch.tensor([[10, 30, 60], [100, 300, 600], [1, 3, 6]])
    disjoint = torch.eye(3) * torch.tensor([5.0, 500.0, 50.0])[:, None]
    assert separation(equal).item() == pytest.approx(0, abs=1e-12)
    assert domain_information(equal).item() == pytest.approx(0, abs=1e-12)
    assert separation(disjoint).item() == pytest.approx(1)
    assert domain_information(disjoint).item() == pytest.approx(math.log2(3))


def divergence(p: list[float], q: list[float]) -> float:
    """In bits, by its definition: the mean of both's Kullback-Leibler divergence from their middle."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(a * math.log2(a / m) / 2 for row in (p, q) for a, m in zip(row, middle, strict=True) if a)


def test_separation_is_the_mean_over_pairs() -> None:
    counts = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    rows = (counts / counts.sum(1, keepdim=True)).tolist()
    pairs = [divergence(rows[i], rows[j]) for i in range(4) for j in range(i)]
    assert separation(counts).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert separation(torch.stack([counts, counts]))[1].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_amount_of_text_does_not_weigh() -> None:
    counts = torch.tensor([[30, 10], [10, 30]])
    more = counts * torch.tensor([[100], [1]])
    assert separation(more).item() == pytest.approx(separation(counts).item())
    assert domain_information(more).item() == pytest.approx(domain_information(counts).item())


def test_contrast_is_the_largest_ratio_of_an_expert_in_use() -> None:
    counts = torch.tensor([[58, 30, 12, 0], [20, 40, 39, 1]])  # expert 3: 0 against 1%, but below the even share
    ratio, expert, high, low = contrast(counts)
    assert (int(expert), int(high), int(low)) == (2, 1, 0)
    assert ratio.item() == pytest.approx(39 / 12)


def test_contrast_does_not_explode_where_an_expert_is_hardly_chosen() -> None:
    ratio, expert, high, low = contrast(torch.tensor([[10_000, 1], [5_000, 5_001]]))
    assert (int(expert), int(high), int(low)) == (1, 1, 0)
    assert ratio.item() == pytest.approx(5_001 / 10_001 / 0.01)


def test_domains_that_differ_by_their_types_alone_do_not_differ_within_a_type() -> None:
    by_type = torch.tensor([[0.9, 0.1], [0.2, 0.8]])  # words to expert 0, numbers to expert 1
    amounts = torch.tensor([[9000.0, 1000.0], [1000.0, 9000.0]])  # of each type in two domains
    counts = (amounts[:, :, None] * by_type).round().long()
    assert separation(counts.sum(1)).item() > 0.2
    assert within_type_separation(counts).item() == pytest.approx(0, abs=1e-9)
    found = type_information(counts)
    assert found["domain_within_type"].item() == pytest.approx(0, abs=1e-9)
    assert found["type_within_domain"].item() > 0.1


def test_a_handful_of_choices_of_a_type_says_nothing() -> None:
    counts = torch.tensor([[[900, 100], [49, 0]], [[900, 100], [0, 49]]])
    assert within_type_separation(counts).item() == pytest.approx(0, abs=1e-9)
    assert within_type_separation(counts + counts).item() > 0.01


def test_domains_that_differ_within_every_type_stay_apart() -> None:
    by_domain = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    counts = (5000 * by_domain[:, None, :].expand(2, 3, 2)).long()
    assert within_type_separation(counts).item() == pytest.approx(separation(counts.sum(1)).item())
    found = type_information(counts)
    assert found["type"].item() == pytest.approx(0, abs=1e-9)
    assert found["type_within_domain"].item() == pytest.approx(0, abs=1e-9)
    assert found["domain_within_type"].item() == pytest.approx(domain_information(counts.sum(1)).item())


def documents(taste_of: str, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """60 documents of 3 domains, 200 tokens each, 4 experts; each document or each domain has a taste of its own."""
    generator = torch.Generator().manual_seed(seed)
    labels = [index % 3 for index in range(60)]
    tastes = torch.rand(60, 4, generator=generator) ** 4 + 0.01
    rows = []
    for index, label in enumerate(labels):
        taste = tastes[index if taste_of == "document" else label]
        drawn = torch.multinomial(taste, 200, replacement=True, generator=generator)
        rows.append(torch.bincount(drawn, minlength=4))
    return torch.stack(rows)[:, None, :], labels


def domain_sums(counts: torch.Tensor, labels: list[int]) -> torch.Tensor:
    return torch.stack([counts[torch.tensor(labels) == domain, 0].sum(0) for domain in range(3)])


def test_domains_with_a_taste_are_beyond_chance() -> None:
    counts, labels = documents("domain")
    baselines = permutation_baselines(counts, counts, labels, draws=100)
    sums = domain_sums(counts, labels)
    assert separation(sums).item() > 3 * baselines["separation"][0].p95
    assert domain_information(sums).item() > 3 * baselines["information"][0].p95
    assert contrast(sums)[0].item() > baselines["contrast"][0].p95


def test_documents_with_a_taste_are_not() -> None:
    """Sixty tastes without a domain's: tokens shuffled one by one would call this significant."""
    beyond = 0
    for seed in range(10):
        counts, labels = documents("document", seed)
        baseline = permutation_baselines(counts, counts, labels, draws=60, seed=seed)["separation"][0]
        beyond += separation(domain_sums(counts, labels)).item() > baseline.p95
        assert baseline.mean < baseline.p95
    assert beyond <= 2


def beyond_cells(counts: torch.Tensor, labels: list[int], seed: int = 0) -> int:
    chance = cell_chance(counts, labels, draws=60, seed=seed)
    found = shares(domain_sums(counts, labels))
    return int(((found < torch.tensor(chance.low)[0]) | (found > torch.tensor(chance.high)[0])).sum())


def test_shares_of_domains_with_a_taste_are_beyond_chance() -> None:
    assert beyond_cells(*documents("domain")) >= 6  # of 12


def test_no_share_of_documents_with_a_taste_is() -> None:
    """A range for each cell alone would call one of twenty a finding; all cells together are in theirs."""
    assert sum(beyond_cells(*documents("document", seed), seed) > 0 for seed in range(10)) <= 2
