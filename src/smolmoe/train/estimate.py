"""What a training run costs, before it is begun: parameters, memory, tokens, FLOPs, time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import expert_parameters, find_layers

# Shares of the speed of large matrix products that a training step of a small model reaches, seen on CPUs and GPUs.
EFFICIENCY = 0.3
STATE_BYTES = {"adamw": 16, "adafactor": 8, "sgd": 8}  # a parameter: weight, gradient, optimiser state, in fp32
ACTIVATION_BYTES = 100  # per token, layer and unit of hidden size, kept for the backward pass
LOGIT_BYTES = 12  # per token and vocabulary entry: logits, their fp32 copy, their gradient
MEASURED_WINDOWS = 16  # held-out windows at once, see `evaluate.held_out`
PROCESS_BYTES = 450_000_000  # of Python, torch and transformers; a GPU does not hold them


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and what a token costs it.

    Attributes:
        total, active: all, and those that one token uses (K of E experts).
        embedding: of the input embedding (also in `active`).
        multiplied: active ones in matrix products: without the embedding's look-up, with the output head.
        layers, attention_width: of the attention: L, and heads times head size.
    """

    total: int
    active: int
    embedding: int
    multiplied: int
    layers: int
    attention_width: int

    def flops_per_token(self, length: int) -> float:
        """Training FLOPs per token in sequences of `length`: 3 times the forward pass's (one forward, two backward).

        Forward: 2 a multiplied parameter, and 4 * attention width per position attended to, half the length on average.
        """
        return 3 * (2 * self.multiplied + 2 * length * self.attention_width * self.layers)

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def size_of(model: Any) -> ModelSize:
    """Sizes of a causal LM, on whatever device (meta is enough)."""
    tied_names = set(getattr(model, "all_tied_weights_keys", None) or ())
    total = sum(p.numel() for name, p in model.named_parameters() if name not in tied_names)
    _, layers = find_layers(model)
    idle = 0
    for index, router in find_routers(model):
        spec = gate_spec(router)
        routed = sum(tensor.numel() for tensor in expert_parameters(layers[index], router, spec.experts).values())
        idle += routed - routed * spec.top_k // spec.experts
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    active = total - idle
    return ModelSize(total, active, embedding, active - (0 if tied_names else embedding), len(layers), width)


@dataclass(frozen=True)
class Estimate:
    """What a run will cost, roughly: memory within a factor of two, time within three.

    Attributes:
        size: of the model.
        steps, tokens: of the run.
        flops: of the run.
        memory_bytes: at its peak, of one process.
        seconds: on this machine, all processes like this one.
    """

    size: ModelSize
    steps: int
    tokens: int
    flops: float
    memory_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    model: Any,
    *,
    steps: int,
    blocks_a_step: int,
    micro_batch: int,
    length: int,
    optimizer: str,
    device: str,
    bf16: bool,
) -> Estimate:
    """The cost of a run of a model that may lie on meta.

    Args:
        blocks_a_step: sequences of an optimiser step, over all processes and accumulated batches.
        micro_batch: sequences of one batch of one process.
        optimizer: transformers' name of it.
    """
    size = size_of(model)
    config = model.config.get_text_config()
    tokens = steps * blocks_a_step * length
    flops = tokens * size.flops_per_token(length)
    kind = next((name for name in STATE_BYTES if optimizer.startswith(name)), "adamw")
    at_once = micro_batch * length
    memory = (
        STATE_BYTES[kind] * size.total
        + at_once * size.layers * config.hidden_size * ACTIVATION_BYTES
        + (at_once + MEASURED_WINDOWS * length) * config.vocab_size * LOGIT_BYTES
        + (0 if device == "cuda" else PROCESS_BYTES)
    )
    return Estimate(size, steps, tokens, flops, int(memory), flops / (EFFICIENCY * product_rate(device, bf16)))


def product_rate(device: str, bf16: bool, seconds: float = 0.2) -> float:
    """FLOP/s of large matrix products, measured in a fraction of a second."""
    n = 4096 if device == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    (a @ b).sum().item()
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        (a @ b)[0, 0].item()
        done += 1
    return 2.0 * n**3 * done / spent
