"""A model's log-probabilities of held-out answers, and its routing of held-out prompts, before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from smolmoe.alignment.tokens import Row
from smolmoe.core.devices import doubled
from smolmoe.evaluation.held_out import DocumentLosses
from smolmoe.inference.sampling import padded
from smolmoe.moe.gating import gate_spec, router_weight
from smolmoe.moe.losses import expert_probabilities
from smolmoe.moe.routing import RoutingCapture, find_routers

BATCH = 8  # sequences at once
DRIFT_TOKENS = 16_384  # of held-out prompts; their router logits are kept in memory

Step = Callable[[int, int], None]  # rows done, of how many


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of held-out answers under a model, row by row, in nats, summed over the answer.

    Attributes:
        chosen: [N].
        rejected: [N]; None for supervised data.
        tokens: learned tokens of all chosen answers.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor | None
    tokens: int

    @property
    def loss(self) -> float:
        """Loss on the chosen answers, in nats per token."""
        return -self.chosen.sum().item() / self.tokens

    def documents(self, rows: Sequence[Row]) -> DocumentLosses:
        """The losses of the chosen answers, row by row."""
        nll = tuple((-self.chosen).tolist())
        return DocumentLosses(nll, tuple(len(row.chosen) for row in rows), ("",) * len(rows))

    def to_json(self, before: Answers | None = None, beta: float = 0.0) -> dict[str, float]:
        """Loss; for pairs, the share and the mean margin by which the chosen answer is more likely.

        Args:
            before: the same answers under the reference; adds the share and the mean by which the margin has grown:
                DPO's reward margin (arXiv 2305.18290) with this `beta`.
        """
        found = {"loss": self.loss}
        if self.rejected is None:
            return found
        margins = self.chosen - self.rejected
        found |= {"accuracy": (margins > 0).double().mean().item(), "margin": margins.mean().item()}
        if before is not None and before.rejected is not None:
            grown = margins - (before.chosen - before.rejected)
            found["reward_accuracy"] = (grown > 0).double().mean().item()
            found["reward_margin"] = beta * grown.mean().item()
        return found


@dataclass(frozen=True)
class RouterState:
    """The outputs of a model's routers for some tokens.

    Attributes:
        logits: [L, T, E] in fp32, on the CPU.
        chosen: [L, T, E] bool, the experts of each token.
        weights: [L, E, D], of the routers.
        scoring: softmax or sigmoid.
    """

    logits: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    scoring: str


@torch.no_grad()
def held_out_answers(model: Any, rows: Sequence[Row], *, step: Step | None = None) -> Answers:
    """The model's log-probabilities of the rows' answers, in its own dtype.

    Args:
        rows: at least one; all of them pairs, or none.
    """
    chosen = _log_probabilities(model, [(row.prompt, row.chosen, row.chosen_loss) for row in rows], step)
    rejected = None
    if all(row.rejected for row in rows):
        rejected = _log_probabilities(model, [(row.prompt, row.rejected, row.rejected_loss) for row in rows], None)
    return Answers(chosen, rejected, sum(sum(row.chosen_loss) or len(row.chosen) for row in rows))


@torch.no_grad()
def router_state(model: Any, rows: Sequence[Row]) -> RouterState | None:
    """How the model routes the prompts of the rows; None for a dense model."""
    routers: list[Any] = [router for _, router in find_routers(model)]
    if not routers:
        return None
    capture = RoutingCapture(model)
    model.eval()
    with capture:
        for prompts in _prompts(rows):
            ids, mask = padded(prompts, model.device)
            capture.keep = mask.flatten().bool()
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    routings = [capture.routing(layer) for layer in capture.layers]
    return RouterState(
        torch.stack([routing.logits.float().cpu() for routing in routings]),
        torch.stack([routing.chosen().cpu() for routing in routings]),
        torch.stack([router_weight(router).detach().float().cpu() for router in routers]),
        gate_spec(routers[0]).scoring,
    )


def drift(before: RouterState, after: RouterState) -> dict[str, Any]:
    """How far routers have moved on the same tokens.

    `changed`: share of the top-k choices that changed. `kl`: KL(before ‖ after) of the routers' distributions in nats,
    mean over tokens. `weights`: |W' - W| / |W|. `by_layer` has the values of every layer.
    """
    shared = (before.chosen & after.chosen).sum((1, 2)) / before.chosen.sum((1, 2))
    old, new = (expert_probabilities(state.logits, state.scoring) for state in (before, after))
    tiny = torch.finfo(old.dtype).tiny
    kl = (old * (old.clamp_min(tiny).log() - new.clamp_min(tiny).log())).sum(-1).mean(-1)
    moved = (after.weights - before.weights).flatten(1).norm(dim=1) / before.weights.flatten(1).norm(dim=1).clamp_min(
        tiny
    )
    values = {"changed": 1 - shared, "kl": kl.clamp_min(0), "weights": moved}
    return {
        "tokens": before.logits.shape[1],
        **{name: value.mean().item() for name, value in values.items()},
        "by_layer": {name: [round(entry, 6) for entry in value.tolist()] for name, value in values.items()},
    }


def _prompts(rows: Sequence[Row]) -> Iterator[list[tuple[int, ...]]]:
    """Batches of prompts, until they have `DRIFT_TOKENS` tokens."""
    spent, batch = 0, []
    for prompt in dict.fromkeys(row.prompt for row in rows):
        if spent >= DRIFT_TOKENS:
            break
        spent += len(prompt)
        batch.append(prompt)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _log_probabilities(
    model: Any, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]], step: Step | None
) -> torch.Tensor:
    """[N], of (prompt, answer, mask of its learned tokens, empty for all); similar lengths share a batch."""
    model.eval()
    found = torch.zeros(len(pairs), dtype=torch.float64)
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    for first in range(0, len(order), BATCH):
        at = order[first : first + BATCH]
        ids, mask = padded([pairs[index][0] + pairs[index][1] for index in at], model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        said = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        starts = torch.tensor([len(pairs[index][0]) for index in at], device=ids.device)
        is_answer = torch.arange(1, ids.shape[1], device=ids.device) >= starts[:, None]
        for row, index in enumerate(at):
            prompt, answer, loss = pairs[index]
            if loss:
                begin = len(prompt) - 1
                is_answer[row, begin : begin + len(answer)] = torch.tensor(loss, device=ids.device)
        found[at] = doubled(said * (is_answer & mask[:, 1:].bool())).sum(1).cpu()
        if step is not None:
            step(min(first + BATCH, len(order)), len(order))
    return found
