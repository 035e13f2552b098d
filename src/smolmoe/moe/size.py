"""Model size: total and active parameters, and the FLOPs of training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from smolmoe.moe.gating import gate_spec
from smolmoe.moe.routing import find_routers
from smolmoe.moe.structure import expert_parameters, find_layers


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and its cost per token.

    Attributes:
        total, active: all parameters, and those used per token (K of E experts).
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


def size_of(model: Any, top_k: int | None = None) -> ModelSize:
    """Sizes of a causal LM, on whatever device (meta is enough).

    Args:
        top_k: experts per token, if it is not the model's K.
    """
    tied_names = set(getattr(model, "all_tied_weights_keys", None) or ())
    total = sum(p.numel() for name, p in model.named_parameters() if name not in tied_names)
    _, layers = find_layers(model)
    idle = 0
    for index, router in find_routers(model):
        spec = gate_spec(router)
        routed = sum(tensor.numel() for tensor in expert_parameters(layers[index], router, spec.experts).values())
        idle += routed - routed * (top_k or spec.top_k) // spec.experts
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight.numel()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    active = total - idle
    return ModelSize(total, active, embedding, active - (0 if tied_names else embedding), len(layers), width)
