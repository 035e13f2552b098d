"""Router losses: values by hand, and their parts over micro-batches and ranks against the whole batch."""

from __future__ import annotations

import math

import pytest
import torch

from smolmoe.moe.losses import (
    LoadCounter,
    balanced_perplexity,
    domain_load_balance,
    expert_probabilities,
    guidance,
    guidance_target,
    load_balance,
    z_loss,
)

E, K, D = 4, 2, 6


def counts_of(logits: torch.Tensor) -> torch.Tensor:
    return torch.bincount(logits.topk(K).indices.flatten(), minlength=E)[None]


def load_of(logits: torch.Tensor) -> torch.Tensor:
    counts = counts_of(logits)[0]
    return counts / counts.sum()


def test_probabilities_sum_to_one() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [-200.0, -201.0]])
    softmax = expert_probabilities(logits, "softmax")
    torch.testing.assert_close(softmax[0], torch.tensor([0.25, 0.75]))
    sigmoid = expert_probabilities(logits, "sigmoid")  # 1/2 and 3/4 over their sum
    torch.testing.assert_close(sigmoid[0], torch.tensor([0.4, 0.6]))
    torch.testing.assert_close(sigmoid.sum(-1), torch.ones(2))  # also where every score underflows
    assert expert_probabilities(logits.bfloat16()).dtype == torch.float32


def test_load_balance_is_one_when_balanced_and_more_at_collapse() -> None:
    even = torch.full((8, E), 1 / E)
    assert load_balance(even, torch.full((E,), 1 / E)).item() == pytest.approx(1)
    onto_one = torch.tensor([1.0, 0, 0, 0])
    assert load_balance(onto_one.expand(8, E), onto_one).item() == pytest.approx(E)
    onto_two = torch.tensor([0.5, 0.5, 0, 0])
    assert load_balance(onto_two.expand(8, E), onto_two).item() == pytest.approx(E / K)


def test_load_balance_by_hand_and_its_gradient() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.9, 0.1]], requires_grad=True)
    load = torch.tensor([0.75, 0.25], requires_grad=True)
    value = load_balance(probabilities, load)
    assert value.item() == pytest.approx(2 * (0.75 * 0.7 + 0.25 * 0.3))
    value.backward()
    torch.testing.assert_close(probabilities.grad, torch.tensor([[0.75, 0.25], [0.75, 0.25]]))
    assert load.grad is None


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert z_loss(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2)
    assert z_loss(torch.zeros(3, E)).item() == pytest.approx(math.log(E) ** 2)
    assert z_loss(torch.tensor([[50.0, 0, 0, 0]]).bfloat16()).item() == pytest.approx(2500)


def test_z_loss_of_sigmoids_leaves_them_at_a_half() -> None:
    logits = torch.zeros(3, E, requires_grad=True)
    assert z_loss(torch.tensor([[3.0, -1.0], [0.0, 2.0]]), "sigmoid").item() == pytest.approx(14 / 4)
    value = z_loss(logits, "sigmoid")
    value.backward()
    assert (value.item(), logits.grad.abs().max().item()) == (0, 0)  # type: ignore[union-attr]
    assert torch.autograd.grad(z_loss(logits), logits)[0].min() > 0  # logsumexp: all of them down
    stacked = torch.randn(2, 5, E)
    torch.testing.assert_close(z_loss(stacked, "sigmoid")[1], z_loss(stacked[1], "sigmoid"))


def test_layers_may_be_stacked() -> None:
    logits = torch.randn(3, 10, E)
    load = torch.stack([load_of(layer) for layer in logits])
    probabilities = expert_probabilities(logits)
    for layer in range(3):
        torch.testing.assert_close(
            load_balance(probabilities, load)[layer], load_balance(probabilities[layer], load[layer])
        )
        torch.testing.assert_close(z_loss(logits)[layer], z_loss(logits[layer]))


def test_balanced_perplexity() -> None:
    assert balanced_perplexity(math.log(7), 1.0) == pytest.approx(7)
    assert balanced_perplexity(math.log(7), 0.0, beta=1.0) == pytest.approx(7 * math.e)
    assert balanced_perplexity(math.log(7), 0.5, beta=2.0) == pytest.approx(7 * math.e)


class Ranks:
    """Several ranks in one process: every reduction is the sum of what all of them hand in."""

    def __init__(self, vectors: list[torch.Tensor]):
        self.vectors = vectors

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        assert any(torch.equal(vector, other) for other in self.vectors)
        return torch.stack(self.vectors).sum(0)


def test_ranks_and_the_last_micro_batch_are_exact() -> None:
    """DDP's mean of the ranks' gradients is the gradient of the loss of all tokens, also where ranks differ in size."""
    torch.manual_seed(0)
    weight = torch.randn(E, D, requires_grad=True)
    sizes = (5, 11, 2)
    x = torch.randn(sum(sizes), D)
    logits = x @ weight.T
    (expected,) = torch.autograd.grad(load_balance(expert_probabilities(logits), load_of(logits)), weight)

    parts = x.split(sizes)
    vectors = [torch.cat([counts_of(part @ weight.T)[0], torch.tensor([len(part), 1])]) for part in parts]
    gradients = []
    for part in parts:
        counter = LoadCounter(1, E, Ranks(vectors))
        logits = part @ weight.T
        load = counter.add(counts_of(logits), len(part))
        assert counter.rank_share.item() == pytest.approx(len(part) * 3 / 18)
        term = load_balance(expert_probabilities(logits), load[0]) * counter.rank_share
        gradients += torch.autograd.grad(term, weight)
    torch.testing.assert_close(torch.stack(gradients).mean(0), expected)


def test_accumulation_is_the_formula_and_exact_once_the_load_is_known() -> None:
    torch.manual_seed(0)
    weight = torch.randn(E, D, requires_grad=True)
    batches = torch.randn(3, 8, D)
    counter = LoadCounter(1, E)
    seen: list[torch.Tensor] = []
    for batch in batches:
        logits = batch @ weight.T
        seen.append(logits)
        load = counter.add(counts_of(logits))[0]
        torch.testing.assert_close(load, load_of(torch.cat(seen)).float())
    # Under the step's load, the parts weighted by their shares of tokens are the whole.
    whole = load_balance(expert_probabilities(torch.cat(seen)), load)
    parts = torch.stack([load_balance(expert_probabilities(logits), load) for logits in seen]).mean()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(*(torch.autograd.grad(v, weight, retain_graph=True)[0] for v in (parts, whole)))


def test_the_counter_starts_anew_and_keeps_totals() -> None:
    counter = LoadCounter(2, 2)
    counter.add(torch.tensor([[1, 3], [2, 2]]))
    load = counter.add(torch.tensor([[3, 1], [0, 4]]))
    assert counter.totals is not None
    assert counter.totals.tolist() == [[4, 4], [2, 6]]
    assert load.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    counter.reset()
    assert counter.totals is None
    assert counter.add(torch.tensor([[0, 0], [1, 3]])).tolist() == [[0, 0], [0.25, 0.75]]
    assert counter.rank_share.item() == 1


def test_a_guidance_target_gives_the_floor_to_others_and_nothing_to_free_experts() -> None:
    members = torch.tensor([[True, True, False, False, False], [False, False, True, False, False]])
    free = torch.tensor([False, False, False, False, True])
    target = guidance_target(members, free, floor=0.1)
    torch.testing.assert_close(target, torch.tensor([[0.4, 0.4, 0.1, 0.1, 0.0], [0.1, 0.1, 0.7, 0.1, 0.0]]))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_guidance_by_hand(scoring: str) -> None:
    free = torch.tensor([False, False, False, True])
    target = torch.tensor([[0.8, 0.1, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0]])
    said = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    scale = said * 0.9  # any factor: sigmoid scores are taken over their sum, and free experts are left out
    logits = torch.cat([scale.log() if scoring == "softmax" else torch.logit(scale), torch.tensor([[3.0], [-3.0]])], 1)
    first = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.1 / 0.25)
    value = guidance(logits, target, free, scoring)
    assert value.item() == pytest.approx((first + math.log(4)) / 2, rel=1e-5)
    assert guidance(target.clamp_min(1e-12).log(), target, torch.zeros(4).bool()).item() == pytest.approx(0, abs=1e-5)
    stacked = guidance(
        torch.stack([logits, logits + 1]) if scoring == "softmax" else logits[None], target, free, scoring
    )
    torch.testing.assert_close(stacked, value.expand(len(stacked)))


def test_guidance_pulls_the_probability_of_a_domains_expert_up_and_leaves_free_experts_alone() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    guidance(logits, torch.tensor([[0.98, 0.01, 0.01, 0.0]]), torch.tensor([False, False, False, True])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]
    assert logits.grad[0, 3] == 0


def test_domain_load_balance_is_one_for_lone_experts_and_sees_imbalance_among_several() -> None:
    allowed = torch.tensor([[True, False, False], [False, True, True]])
    domain_ids = torch.tensor([0, 0, 0, 1])  # uneven shares of the text
    probabilities = torch.tensor([[0.2, 0.7, 0.1]] * 3 + [[0.0, 0.3, 0.1]], requires_grad=True)
    load = torch.tensor([[3.0, 5.0, 1.0], [0.0, 3.0, 1.0]])  # counts; choices outside a domain do not matter to it
    value = domain_load_balance(probabilities, load, allowed, domain_ids)
    of_second = 2 * (0.75 * 0.75 + 0.25 * 0.25)
    assert value.item() == pytest.approx((3 * 1 + of_second) / 4)
    even = domain_load_balance(probabilities, torch.tensor([[1.0, 0, 0], [0, 1, 1]]), allowed, domain_ids)
    assert even.item() == pytest.approx(1)
    value.backward()
    assert probabilities.grad is not None
    assert probabilities.grad[:3].abs().max() < 1e-7
    assert probabilities.grad[3, 1] > 0 > probabilities.grad[3, 2]
    both = domain_load_balance(probabilities.expand(2, 4, 3), load.expand(2, 2, 3), allowed, domain_ids)
    torch.testing.assert_close(both, value.detach().expand(2))


def test_every_router_loss_is_a_weight_in_recipes_and_a_term_with_a_gradient() -> None:
    from smolmoe.moe.losses import ROUTER_LOSSES, RoutedTokens
    from smolmoe.recipe.train import ObjectiveRecipe

    for loss in ROUTER_LOSSES:
        assert ObjectiveRecipe.model_fields[loss.name].description == loss.description
        logits = torch.randn(2, 5, 4, requires_grad=True)
        value = loss.value(RoutedTokens(logits, torch.rand(2, 1, 4), "softmax"))
        assert value.shape == (2,)
        value.mean().backward()
        assert logits.grad is not None
        assert logits.grad.any()
