"""A model's loss without its logits in memory, for classes that allow it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from smolmoe.moe.kernels.linear_cross_entropy import IGNORED, linear_cross_entropy

logger = logging.getLogger(__name__)

FACTOR = 2.0**12  # exact in every dtype, and beyond the linear range of a soft cap


class HeadLoss:
    """The loss of a causal language model from the inputs of its output head. Made by `head_loss`.

    While it is applied, the head returns its inputs, so that the model's loss function gets them instead of the logits;
    a scaling of the logits then scales these inputs. The model's `logits` are these inputs, too.
    """

    def __init__(self, head: nn.Linear, owners: list[Any]):
        self._head = head
        self._owners = owners

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, calling the model with labels computes its loss in parts of the vocabulary's logits."""
        with _replaced(self._head, self._owners, lambda hidden: hidden, self._loss):
            yield

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """As transformers' `ForCausalLMLoss`, of hidden states [B, S, D]."""
        if shift_labels is None:
            shift_labels = pad(labels, (0, 1), value=ignore_index)[..., 1:]
        wanted = shift_labels.flatten().to(logits.device)
        head = self._head
        total = linear_cross_entropy(logits.flatten(0, -2), head.weight, wanted, head.bias, ignored=ignore_index)
        if num_items_in_batch is None:
            return total / (wanted != ignore_index).sum()
        return total / torch.as_tensor(num_items_in_batch, device=total.device)


def head_loss(model: Any) -> HeadLoss | None:
    """The loss for this model; None if its loss is not the cross-entropy of a linear function of the head's inputs.

    What the class does after the head is unknown, so a few arbitrary tokens are passed through it: with the stock loss,
    with ours, and with much larger inputs of the head (to detect a soft cap on logits).
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return None
    # In this order: transformers warns where a module without a loss is asked for its `loss_function`.
    owners = [m for m in model.modules() if _head_of(m) is head and hasattr(m, "loss_function")]
    found = HeadLoss(head, owners)
    try:
        reason = _difference(model, found, head, owners)
    except Exception as error:  # the class cannot be called like this
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        logger.info("The loss of %s is computed from full logits: %s", type(model).__name__, reason)
        return None
    return found


def _head_of(module: Any) -> Any:
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def _difference(model: Any, found: HeadLoss, head: nn.Linear, owners: list[Any]) -> str | None:
    """How the model's loss differs from ours, in words; None if it does not."""
    ids = torch.arange(8, device=head.weight.device).view(2, 4) % head.weight.shape[0]
    was_training, seen = model.training, []

    def pass_on(factor: float) -> torch.Tensor:
        def loss(logits: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            seen.append(logits)
            return logits.sum()

        def identity(hidden: torch.Tensor) -> torch.Tensor:
            seen.append(hidden)
            return factor * hidden

        seen.clear()
        with _replaced(head, owners, identity, loss):
            model(input_ids=ids, labels=ids, use_cache=False)
        return seen[-1]

    model.eval()
    try:
        with torch.no_grad():
            stock = model(input_ids=ids, labels=ids, use_cache=False).loss
            with found.applied():
                ours = model(input_ids=ids, labels=ids, use_cache=False).loss
            given = pass_on(1.0)
            if head.bias is not None and not torch.equal(given, seen[0]):
                return "logits with a bias are changed after the head."
            if not torch.equal(FACTOR * given, pass_on(FACTOR)):
                return "its logits are not a linear function of the head's input."
    finally:
        model.train(was_training)
    exact = head.weight.dtype in (torch.float32, torch.float64)
    if not torch.allclose(stock.float(), ours.float(), rtol=1e-4 if exact else 2e-2, atol=1e-5):
        return f"it is {stock.item():g} on a few tokens, not {ours.item():g}."
    return None


@contextmanager
def _replaced(head: Any, owners: list[Any], forward: Callable[..., Any], loss: Callable[..., Any]) -> Iterator[None]:
    """Within, the head has another forward, and the models that own it another loss function."""
    before = [(module, name, module.__dict__.get(name)) for module, name in _places(head, owners)]
    for module, name, _ in before:
        module.__dict__[name] = forward if name == "forward" else loss
    try:
        yield
    finally:
        for module, name, own in before:
            if own is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = own


def _places(head: Any, owners: list[Any]) -> list[tuple[Any, str]]:
    return [(head, "forward"), *((owner, "_loss_function") for owner in owners)]
