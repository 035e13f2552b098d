"""A model's losses on held-out windows, and its agreement with another model there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.core.devices import in_double
from smolmoe.evaluation.held_out import IGNORED, HeldOut, at_once, batches, token_losses


@dataclass(frozen=True)
class Reading:
    """Sums over the tokens of each document [D].

    Attributes:
        nll: negative log-likelihood in nats.
        tokens: how many were predicted.
        same: tokens whose most likely next token is the same in the base; None without a base.
        kl: KL(base || model) in nats; None without a base.
    """

    nll: tuple[float, ...]
    tokens: tuple[int, ...]
    same: tuple[float, ...] | None
    kl: tuple[float, ...] | None


def read_held_out(
    model: Any, held_out: HeldOut, *, base: Any | None = None, on_window: Callable[[int], None] | None = None
) -> Reading:
    """The losses of a causal language model on every document, and its agreement with a base on the same tokens.

    The losses are those of `document_losses`. If the base's vocabulary is padded to another size, the two models are
    compared on the entries that both have.

    Args:
        base: a model with the same tokenizer, on the same device.
        on_window: called with the number of windows done.
    """
    sums = torch.zeros(3, len(held_out.domains), dtype=torch.float64)
    done = 0
    with torch.inference_mode():
        for chosen, inputs, targets in batches(held_out, at_once(model, held_out), model.device):
            logits = model(input_ids=inputs, use_cache=False).logits.float()
            found = [token_losses(logits, targets)]
            if base is not None:
                found += _agreement(base(input_ids=inputs, use_cache=False).logits.float(), logits, targets)
            owners = torch.tensor([held_out.owners[index] for index in chosen])
            for row, values in enumerate(found):
                sums[row].index_add_(0, owners, in_double(values).sum(dim=1).cpu())
            done += len(chosen)
            if on_window is not None:
                on_window(done)
    nll, same, kl = (tuple(row) for row in sums.tolist())
    return Reading(nll, held_out.document_tokens, *((None, None) if base is None else (same, kl)))


def _agreement(base: torch.Tensor, model: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Whether the most likely token is the same, and KL(base || model), of each token [B, S]; 0 for padding."""
    shared = min(base.shape[-1], model.shape[-1])
    base, model = base[..., :shared], model[..., :shared]
    is_text = targets != IGNORED
    same = (base.argmax(dim=-1) == model.argmax(dim=-1)) & is_text
    log_base, log_model = base.log_softmax(dim=-1), model.log_softmax(dim=-1)
    kl = (log_base.exp() * (log_base - log_model)).sum(dim=-1)
    return [same, kl * is_text]
