"""The loss of a linear layer in parts: its value and every gradient beside torch's own on whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from smolmoe.moe.kernels import linear_cross_entropy as module
from smolmoe.moe.kernels.linear_cross_entropy import linear_cross_entropy

VOCABULARY, SIZE, ROWS = 50, 16, 23


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 rows, worked on 2 at a time: some parts are smaller than others."""
    monkeypatch.setattr(module, "AT_ONCE", 5 * VOCABULARY)
    monkeypatch.setattr(module, "IN_CACHE", 2 * VOCABULARY)


def inputs(dtype: torch.dtype = torch.float32, *, bias: bool = False, seed: int = 0) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(ROWS, SIZE), (VOCABULARY, SIZE), (VOCABULARY,)]
    found = [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return [*found[:2], found[2] if bias else None]


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    hidden, weight, _ = inputs()
    assert hidden is not None
    assert weight is not None
    return hidden, weight


def labels(ignored: int = 4) -> torch.Tensor:
    found = torch.arange(ROWS) * 7 % VOCABULARY
    found[:ignored] = -100
    return found


def stock(hidden: Any, weight: Any, wanted: torch.Tensor, bias: Any) -> torch.Tensor:
    """What transformers does: whole logits, raised to fp32."""
    return cross_entropy(linear(hidden, weight, bias).float(), wanted, reduction="sum")


def gradients(function: Any, given: list[Any], wanted: torch.Tensor, factor: float) -> list[torch.Tensor]:
    hidden, weight, bias = given
    loss = function(hidden, weight, wanted, bias)
    found = torch.autograd.grad(loss * factor, [tensor for tensor in given if tensor is not None])
    return [loss.detach(), *found]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ignored", [0, 4, ROWS])
def test_value_and_gradients_are_those_of_whole_logits(bias: bool, ignored: int) -> None:
    given, wanted = inputs(bias=bias), labels(ignored)
    ours = gradients(linear_cross_entropy, given, wanted, 0.3)
    theirs = gradients(stock, given, wanted, 0.3)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bf16_it_is_nearer_to_the_exact_gradients_than_whole_logits_are(autocast: bool) -> None:
    given, wanted = inputs(torch.float32 if autocast else torch.bfloat16), labels()
    exact = gradients(stock, [None if t is None else t.detach().double().requires_grad_() for t in given], wanted, 0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = gradients(linear_cross_entropy, given, wanted, 0.1)
        theirs = gradients(stock, given, wanted, 0.1)
    for a, b, truth in zip(ours, theirs, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a - truth).norm() <= 1.1 * (b - truth).norm() + 1e-3 * truth.norm()


def test_labels_may_be_ignored_by_another_number() -> None:
    hidden, weight = pair()
    wanted = labels()
    other = wanted.masked_fill(wanted == -100, 3)
    expected = cross_entropy(linear(hidden, weight), other, reduction="sum", ignore_index=3)
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, other, ignored=3), expected)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_gradient_that_nobody_needs_is_not_made(frozen: int) -> None:
    given, wanted = inputs(), labels()
    expected = gradients(stock, given, wanted, 1.0)[1:]
    hidden, weight = pair()
    (hidden, weight)[frozen].requires_grad_(False)
    loss = linear_cross_entropy(hidden, weight, wanted)
    kept = loss.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert kept[frozen] is None
    loss.backward()
    left = (hidden, weight)[1 - frozen].grad
    torch.testing.assert_close(left, expected[1 - frozen], rtol=1e-5, atol=1e-5)


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight = pair()
    with torch.no_grad():
        alone = linear_cross_entropy(hidden, weight, labels())
    assert not alone.requires_grad
    torch.testing.assert_close(alone, stock(hidden, weight, labels(), None).detach())


def test_a_graph_that_is_kept_gives_the_same_gradient_again() -> None:
    hidden, weight = pair()
    loss = linear_cross_entropy(hidden, weight, labels()) * 0.5
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, weight])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_only_a_part_of_the_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            sizes = [t.numel() for t in (found if isinstance(found, tuple | list) else [found]) if hasattr(t, "numel")]
            largest = max(largest, *sizes, 0)
            return found

    hidden, weight = pair()
    with Sizes():
        linear_cross_entropy(hidden, weight, labels()).backward()
    assert largest == VOCABULARY * SIZE  # the weight's gradient; the logits are ROWS * VOCABULARY, which is more
