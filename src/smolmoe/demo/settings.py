"""What a quickstart run is made of."""

from __future__ import annotations

from dataclasses import dataclass

PROMPTS = {
    "code": "    def read(self, size=-1):\n",
    "math": "Problem: What is 236 + 152?\nSolution:\n",
    "prose": "The value of this attribute is",
}


@dataclass(frozen=True)
class QuickstartSettings:
    """Sizes of the run. The defaults take about four minutes on two CPU cores.

    Attributes:
        megabytes: of text.
        vocabulary: of the tokenizer.
        hidden, layers, intermediate, heads, kv_heads: D, L, F and the attention of the dense Llama.
        length: S, tokens a block.
        batch, dense_steps, dense_learning_rate: of the training before the conversion.
        moe_batch, moe_steps, moe_learning_rate: of the training after it.
        dense_seconds, moe_seconds: at most for the two; on a machine that would take longer the steps are fewer.
        experts, top_k: E and K.
        held_out_tokens: in each domain.
        compare: train the dense model on, too, on the same batches: the baseline that tells what the MoE is worth.
        new_tokens: of each sample.
    """

    seed: int = 0
    megabytes: float = 5.0
    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    intermediate: int = 352
    heads: int = 2
    kv_heads: int = 2
    length: int = 256
    batch: int = 4
    dense_steps: int = 1200
    dense_learning_rate: float = 4e-3
    dense_seconds: float = 150
    moe_batch: int = 4
    moe_steps: int = 400
    moe_learning_rate: float = 1e-3
    moe_seconds: float = 90
    experts: int = 8
    top_k: int = 2
    held_out_tokens: int = 10_000
    compare: bool = True
    new_tokens: int = 60
