"""The MoE block in its simplest form: the reference for every faster one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ffn:
    """One feed-forward network: `up` [I, D], `down` [D, I], `gate` [I, D] where it is gated; biases [I], [I], [D]."""

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate_bias: Tensor | None = None

    def __call__(self, x: Tensor, act: Activation) -> Tensor:
        """down(act(gate(x)) * up(x)), or down(act(up(x))): [T, D] to [T, D]."""
        return torch.nn.functional.linear(self.hidden(x, act), self.down, self.down_bias)

    def hidden(self, x: Tensor, act: Activation) -> Tensor:
        """What `down` reads, the activations of the neurons: [T, D] to [T, I]."""
        linear = torch.nn.functional.linear
        up = linear(x, self.up, self.up_bias)
        return act(up) if self.gate is None else act(linear(x, self.gate, self.gate_bias)) * up


def choose(logits: Tensor, top_k: int, scoring: str = "softmax", scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Gates and expert indices, both [T, K], of router logits [T, E]; gates are renormalised, or scores x `scale`."""
    scores = logits.float().softmax(-1) if scoring == "softmax" else logits.float().sigmoid()
    gates, indices = scores.topk(top_k, dim=-1)
    return (gates / gates.sum(-1, keepdim=True) if scale is None else gates * scale), indices


def routed_output(x: Tensor, gates: Tensor, indices: Tensor, experts: Sequence[Ffn], act: Activation) -> Tensor:
    """sum over each token's experts of gate * expert(x), [T, D], one expert at a time."""
    out = torch.zeros_like(x)
    for index, expert in enumerate(experts):
        token, slot = (indices == index).nonzero(as_tuple=True)
        if len(token):
            out.index_add_(0, token, expert(x[token], act) * gates[token, slot, None].to(x.dtype))
    return out


def expert_load(indices: Tensor, experts: int) -> Tensor:
    """Share of all choices that falls on each expert, [E], from indices [T, K]; 1/E each when balanced."""
    return torch.bincount(indices.reshape(-1), minlength=experts).float() / max(1, indices.numel())
