"""Sparse targets against the whole distribution: equal where nothing is left out, unbiased where drawn, biased else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, one_hot

from smolmoe.distillation.sparse import drawn, largest
from smolmoe.training.distillation_losses import losses_of_rows, sampled_divergence, shifted, top_k_divergence

ROWS, V = 6, 40
DRAWS = 12


def logits(seed: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(ROWS, V, generator=torch.Generator().manual_seed(seed))


def full(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """KL(teacher ‖ student) [N] of whole distributions."""
    target = (teacher / temperature).log_softmax(-1)
    return kl_div((student / temperature).log_softmax(-1), target, log_target=True, reduction="none").sum(-1)


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), student, retain_graph=True)[0]


def top_k(student: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float = 1.0) -> torch.Tensor:
    entries = largest((teacher / temperature).log_softmax(-1), k)
    labels = torch.zeros(ROWS, dtype=torch.long)
    ids, values = entries.ids.view(ROWS, k), entries.values.view(ROWS, k)
    return losses_of_rows(student, labels, ids, values, entries.rest, sampled=False, temperature=temperature)[1]


def sampled(student: torch.Tensor, teacher: torch.Tensor, draws: int, uniforms: torch.Tensor) -> torch.Tensor:
    """Through the same padded rows as a cache gives."""
    entries = drawn(teacher.log_softmax(-1), draws, uniforms)
    ids, shares = torch.zeros(ROWS, draws, dtype=torch.long), torch.zeros(ROWS, draws)
    place = torch.cat([torch.arange(n) for n in torch.bincount(entries.rows, minlength=ROWS).tolist()])
    ids[entries.rows, place], shares[entries.rows, place] = entries.ids, entries.values / draws
    labels = torch.zeros(ROWS, dtype=torch.long)
    return losses_of_rows(student, labels, ids, shares, entries.rest, sampled=True)[1]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_all_entries_give_the_full_divergence_and_its_gradient(temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    whole, ours = full(student, teacher, temperature), top_k(student, teacher, V, temperature)
    # The cache's float16 log-probabilities, up to about 10, are within 2^-11 of themselves.
    assert torch.allclose(ours, whole, atol=3e-3)
    assert torch.allclose(gradient(ours, student), gradient(whole, student), atol=1e-3)
    target = (teacher / temperature).log_softmax(-1)
    said = (student / temperature).log_softmax(-1)
    exact = top_k_divergence(said, target, torch.full((ROWS,), -math.inf))
    assert torch.allclose(exact, whole, atol=2e-6)
    assert torch.allclose(gradient(exact, student), gradient(whole, student), atol=2e-7)


def test_a_teacher_that_agrees_has_nothing_to_say() -> None:
    student = logits(0).requires_grad_()
    for k in (1, 5, V):
        found = top_k(student, student.detach(), k)
        assert torch.all(found.abs() < 1e-6)
        assert gradient(found, student).abs().max() < 1e-3


def test_the_tail_makes_of_the_divergence_what_k_entries_can_tell() -> None:
    student, teacher = logits(0), logits(1)
    whole = full(student, teacher)
    found = torch.stack([top_k(student, teacher, k) for k in (1, 5, 20, V)])
    assert torch.all(found[:-1] < whole + 3e-3)
    assert torch.all(found.diff(dim=0) > -3e-3)  # more entries tell more
    assert torch.all(found > 0)


def test_a_student_that_is_sure_of_the_entries_has_a_finite_gradient() -> None:
    sure = torch.zeros(ROWS, V)
    sure[:, :5] = 60.0
    sure.requires_grad_()
    teacher = logits(1)
    teacher[:, :5] += 8
    for dtype in (torch.float32, torch.bfloat16):
        found = top_k(sure.to(dtype), teacher, 5)
        assert torch.isfinite(found).all()
        assert gradient(found, sure).abs().max() < 2


def unbiased_error(draws_of_target: int, *, estimate: str) -> float:
    """Distance of the mean gradient over so many targets from the full one, relative to the full one."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    whole = gradient(full(student, teacher), student)
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros_like(whole)
    for _ in range(draws_of_target):
        uniforms = torch.rand(ROWS, generator=generator, dtype=torch.float64)
        total += gradient(sampled(student, teacher, DRAWS, uniforms), student)
    if estimate == "top-k":
        values, ids = teacher.log_softmax(-1).topk(DRAWS)
        said = student.log_softmax(-1).gather(-1, ids)
        total = draws_of_target * gradient(-(values.softmax(-1) * said).sum(-1), student)
    return float((total / draws_of_target - whole).norm() / whole.norm())


def test_drawn_targets_give_the_full_gradient_on_average_at_the_monte_carlo_rate() -> None:
    few, many = unbiased_error(25, estimate="drawn"), unbiased_error(1600, estimate="drawn")
    assert many < 0.01
    assert 3 < few / many < 20  # 64 times the draws: 8 times nearer


def test_scaled_top_k_stays_away_from_the_full_gradient_and_from_the_teacher() -> None:
    assert unbiased_error(1, estimate="top-k") > 8 * unbiased_error(1600, estimate="drawn")
    teacher = logits(1)
    values, ids = teacher.log_softmax(-1).topk(DRAWS)
    scaled = torch.zeros(ROWS, V).scatter(-1, ids, values.softmax(-1))
    assert torch.all((scaled - teacher.softmax(-1)).abs().sum(-1) > 0.05)  # where its gradient is 0


def test_the_drawn_divergence_is_the_full_one_on_average_and_not_only_its_gradient() -> None:
    student, teacher = logits(0), logits(1)
    generator = torch.Generator().manual_seed(5)
    uniforms = torch.rand(400, ROWS, generator=generator, dtype=torch.float64)
    mean = torch.stack([sampled(student, teacher, DRAWS, row) for row in uniforms]).mean(0)
    assert torch.allclose(mean, full(student, teacher), rtol=0.03)


def test_counts_are_never_further_than_one_from_their_expectation() -> None:
    log_probabilities = logits(1).log_softmax(-1)
    for seed in range(20):
        uniforms = torch.rand(ROWS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        entries = drawn(log_probabilities, DRAWS, uniforms)
        counts = torch.zeros(ROWS, V, dtype=torch.long)
        counts[entries.rows, entries.ids] = entries.values
        assert torch.all(counts.sum(-1) == DRAWS)
        assert torch.all((counts - DRAWS * log_probabilities.exp()).abs() < 1)


def test_a_token_without_probability_is_never_drawn() -> None:
    log_probabilities = torch.full((ROWS, V), -math.inf)
    log_probabilities[:, 7] = 0.0
    for uniform in (0.0, np.nextafter(1.0, 0.0)):
        entries = drawn(log_probabilities, DRAWS, torch.full((ROWS,), uniform, dtype=torch.float64))
        assert entries.ids.tolist() == [7] * ROWS
        assert entries.values.tolist() == [DRAWS] * ROWS


def test_the_cross_entropy_is_torch_own_and_ignored_rows_count_for_nothing() -> None:
    student = logits(0).requires_grad_()
    labels = torch.tensor([3, -100, 5, 39, 0, -100])
    ids, values = torch.zeros(ROWS, 2, dtype=torch.int32), torch.zeros(ROWS, 2, dtype=torch.half)
    for temperature in (1.0, 3.0):
        ce, divergence = losses_of_rows(
            student, labels, ids, values, torch.zeros(ROWS).half(), sampled=False, temperature=temperature
        )
        assert ce.sum().item() == pytest.approx(cross_entropy(student, labels, reduction="sum").item(), rel=1e-6)
        assert divergence[[1, 5]].tolist() == [0.0, 0.0]
        assert gradient(ce + divergence, student)[[1, 5]].abs().max() == 0


def test_a_sampled_target_of_one_token_is_its_cross_entropy() -> None:
    student = logits(0)
    labels = torch.arange(ROWS)
    shares = one_hot(labels, V).float()
    said = student.log_softmax(-1)
    found = sampled_divergence(said, shares, torch.zeros(ROWS))
    assert torch.allclose(found, cross_entropy(student, labels, reduction="none"))


def test_shifted_gives_each_position_what_belongs_to_the_next_token() -> None:
    assert shifted(torch.tensor([[1, 2, 3], [4, 5, 6]]), -100).tolist() == [2, 3, -100, 5, 6, -100]
    pairs = torch.arange(8).view(1, 4, 2)
    assert shifted(pairs, 0).tolist() == [[2, 3], [4, 5], [6, 7], [0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_few_rows_at_a_time_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Values and gradients against log-softmax and gather; 7 rows in parts of 2, an entry that is the label, too."""
    from smolmoe.training import distillation_losses

    monkeypatch.setattr(distillation_losses, "AT_ONCE", 2 * 11)
    torch.manual_seed(0)
    logits = torch.randn(7, 11, dtype=torch.float64).float().requires_grad_()
    labels = torch.tensor([3, 0, 10, 4, -100, 5, 6])
    ids = torch.stack([torch.randperm(11)[:4] for _ in labels])
    ids[0, 2] = 3
    values, rest = torch.randn(7, 4).log_softmax(-1) - 0.3, torch.full((7,), -1.4)
    both = distillation_losses.losses_of_rows(logits, labels, ids, values, rest, sampled=False, temperature=temperature)
    (found,) = torch.autograd.grad(both[0].sum() + 0.7 * both[1].sum(), logits)
    own = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    said = (logits / temperature).log_softmax(-1).gather(-1, ids)
    kept = (labels >= 0).float()
    divergence = distillation_losses.top_k_divergence(said, values, rest)
    (wanted,) = torch.autograd.grad((kept * (0.7 * divergence - own)).sum(), logits)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[0], -own * kept)
