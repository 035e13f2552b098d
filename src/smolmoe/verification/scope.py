"""How much a verification measures: everything, or what takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from smolmoe.results.verification import VerifyMode
from smolmoe.verification.sample import Side

# A model that does not fit into memory is read again for every decoded token.
NEW_TOKENS_WHEN_STREAMED = 4


@dataclass(frozen=True)
class Scope:
    """What a mode measures, on all sequences or on some.

    Attributes:
        sequences: number of token sequences.
        sides: sides on which a batch is padded.
        decodes: decode with the KV cache.
        half: compute in the MoE's 16-bit dtype as well.
    """

    sequences: int
    sides: tuple[Side, ...]
    decodes: bool
    half: bool


SCOPES: dict[VerifyMode, Scope] = {
    "full": Scope(sequences=6, sides=("left", "right"), decodes=True, half=True),
    "quick": Scope(sequences=2, sides=(), decodes=False, half=False),
}


@dataclass(frozen=True)
class Inputs:
    """What both models are run on.

    Attributes:
        sequences: [S_i], of unequal lengths.
        prompts: [S_i], none without decoding.
        new_tokens: decoded after each prompt.
        probed: the sequences whose FFN inputs in the dense model both models' FFNs are compared on, by index.
    """

    sequences: Sequence[torch.Tensor]
    sides: tuple[Side, ...]
    prompts: Sequence[torch.Tensor]
    new_tokens: int
    device: str
    probed: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        sequences: Sequence[torch.Tensor],
        scope: Scope,
        new_tokens: int,
        config: Any,
        device: str,
        *,
        predicted: bool = False,
    ) -> Inputs:
        """Those of a scope; the prompts are the beginnings of the few sequences.

        Args:
            predicted: the claim predicts the FFNs' errors, which takes all sequences to measure; else they are only
                shown, and the few sequences are enough.
        """
        inputs = cls(sequences, scope.sides, (), new_tokens, device)
        inputs = replace(inputs, probed=range(len(sequences)) if predicted else inputs.few)
        prompts = [sequence[: max(2, len(sequence) // 4)] for sequence in inputs.few_sequences if scope.decodes]
        return replace(inputs, prompts=_on_one_side(prompts, new_tokens, config))

    @property
    def few(self) -> list[int]:
        """The shortest and the longest sequence: of padded batches, decoding, the control and the run in 16 bits.

        What these find is not a matter of the text, so two sequences are enough; their lengths differ the most.
        """
        order = sorted(range(len(self.sequences)), key=lambda index: len(self.sequences[index]))
        return sorted({order[0], order[-1]})

    @property
    def few_sequences(self) -> list[torch.Tensor]:
        return [self.sequences[index] for index in self.few]


def _on_one_side(prompts: list[torch.Tensor], new_tokens: int, config: Any) -> list[torch.Tensor]:
    """Prompts cut so that decoding does not grow past the length at which longrope changes its frequencies.

    Only Phi3ForCausalLM computes its cached keys again there; claims state this limit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = int(rope.get("original_max_position_embeddings") or 0) if rope.get("rope_type") == "longrope" else 0
    longest = max(map(len, prompts), default=0)
    crosses = longest <= limit < longest + new_tokens
    return [prompt[: max(2, limit - new_tokens)] for prompt in prompts] if crosses else prompts
