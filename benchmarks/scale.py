"""On paper: a 7B model upcycled to 8x7B and trained on 64 GPUs: the tables of docs/how-to/scale.md, nothing measured.

    python benchmarks/scale.py

The model is built without weights, so that its parameters are those of the class. What the rest follows from is the
constants below and the formulas beside the numbers.
"""

from __future__ import annotations

from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, MistralConfig, MixtralConfig

from smolmoe.training.estimate import LOGIT_BYTES, ModelSize, size_of

# The shapes of Mistral-7B-v0.1 and of what `smolmoe upcycle --experts 8 --top-k 2` makes of it.
DENSE = MistralConfig(tie_word_embeddings=False)
MOE = MixtralConfig(num_local_experts=8, num_experts_per_tok=2, tie_word_embeddings=False)

GPUS, PER_NODE = 64, 8
MEMORY = 80e9  # bytes, H100 SXM
PEAK = 989e12  # FLOP/s of dense bf16 products, H100 SXM
MFU = 0.35  # share of it that the model's own FLOPs reach: assumed
NETWORK = 50e9  # bytes/s a GPU between nodes: 400 Gb/s, assumed
PRICE = 2.5  # dollars an hour and GPU: assumed
LENGTH = 4096
MICRO_BATCH = 8
TOKENS = 100e9
RESERVE = 0.9  # share of the memory that may be planned with


def main() -> None:
    dense, moe = size(DENSE), size(MOE)
    layer, rest = units()
    print(row(dense=dense.total, moe=moe.total, active=moe.active, a_layer=layer, outside_of_layers=rest), "\n")
    print_states(moe.total)
    print_memory(moe.total, layer, rest)
    flops = moe.flops_per_token(LENGTH)
    print(f"FLOPs a token: {flops:.3e} (dense: {dense.flops_per_token(LENGTH):.3e})")
    print_cost(flops)
    print_network(moe.total, flops)
    print(f"host memory of rank 0: {gigabytes(4 * moe.total)} to load, {gigabytes(8 * moe.total)} to save Adam's state")
    print(f"a checkpoint: {gigabytes(12 * moe.total)}; the model alone: {gigabytes(4 * moe.total)}")


def print_states(total: int) -> None:
    print("| stored as | weights | gradients | Adam | together, a GPU |")
    print("|---|---|---|---|---|")
    for name, parts in {"fp32 (what smolmoe trains)": (4, 4, 8), "bf16 throughout": (2, 2, 4)}.items():
        each = [part * total / GPUS for part in parts]
        print(f"| {name} | {' | '.join(gigabytes(value) for value in each)} | {gigabytes(sum(each))} |")
    print(f"\nwithout sharding (DDP): {gigabytes(16 * total)} a GPU\n")


def print_memory(total: int, layer: int, rest: int) -> None:
    fixed = {
        "stored: weights, gradients, Adam, 16P/N": 16 * total / GPUS,
        "gathered in bf16: two layers and what is outside": 2 * 2 * layer + 2 * rest,
        "gradients of one layer, in bf16 and as they are reduced, in fp32": (2 + 4) * layer,
    }
    sequence = sequence_bytes()
    print("| a GPU holds | |")
    print("|---|---|")
    for name, value in {**fixed, **sequence}.items():
        print(f"| {name} | {gigabytes(value)} |")
    each = sum(sequence.values())
    print(f"| all, {MICRO_BATCH} sequences at once | {gigabytes(sum(fixed.values()) + MICRO_BATCH * each)} |")
    most = int((RESERVE * MEMORY - sum(fixed.values())) // each)
    print(f"\nsequences that fit into {RESERVE:.0%} of {gigabytes(MEMORY)}: {most}\n")


def print_cost(flops: float) -> None:
    rate = GPUS * PEAK * MFU / flops
    hours = GPUS * TOKENS / rate / 3600
    print(f"tokens/s on {GPUS} GPUs: {rate:,.0f}; {TOKENS / 1e9:.0f}B tokens: {TOKENS / rate / 86400:.1f} days")
    print(f"GPU hours: {hours:,.0f}; at ${PRICE:.2f}: ${hours * PRICE:,.0f}\n")


def print_network(total: int, flops: float) -> None:
    width, layers = MOE.hidden_size, MOE.num_hidden_layers
    experts = 3 * MOE.num_local_experts * width * MOE.intermediate_size * layers
    moved = [8 * total, 8 * (total - experts + experts / PER_NODE)]
    exchanged = 3 * 2 * MICRO_BATCH * LENGTH * MOE.num_experts_per_tok * width * 2 * layers
    computing = MICRO_BATCH * LENGTH * flops / (PEAK * MFU)
    balanced = [value / NETWORK * PEAK * MFU / (LENGTH * flops) for value in moved]
    print(f"| {MICRO_BATCH} sequences at once | FSDP2 | FSDP2, experts split over {PER_NODE} GPUs |")
    print("|---|---|---|")
    print(f"| computing | {computing:.1f} s | {computing:.1f} s |")
    print(f"| weights and gradients moved, 8 bytes each | {' | '.join(gigabytes(value) for value in moved)} |")
    print(f"| moving them at {gigabytes(NETWORK)}/s | {' | '.join(f'{value / NETWORK:.1f} s' for value in moved)} |")
    print(f"| sequences for which both take as long | {' | '.join(f'{value:.1f}' for value in balanced)} |")
    print(f"| tokens exchanged within the node | - | {gigabytes(exchanged)} |\n")


def size(config: Any) -> ModelSize:
    with init_empty_weights(include_buffers=False):
        return size_of(AutoModelForCausalLM.from_config(config))


def units() -> tuple[int, int]:
    """Parameters of one decoder layer, and of all that is in none."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(MOE)
    layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    return layer, sum(parameter.numel() for parameter in model.parameters()) - layer * len(model.model.layers)


def sequence_bytes() -> dict[str, float]:
    """Bytes of one sequence with every layer checkpointed, in bf16: what is kept, and what one layer recomputes."""
    width, ffn, top_k = MOE.hidden_size, MOE.intermediate_size, MOE.num_experts_per_tok
    return {
        "inputs of the layers, L·S·D·2": MOE.num_hidden_layers * LENGTH * width * 2,
        "experts of one layer, S·K·(4F + 2D)·2": LENGTH * top_k * (4 * ffn + 2 * width) * 2,
        "attention of one layer, S·8D·2": LENGTH * 8 * width * 2,
        f"logits, S·V·{LOGIT_BYTES}": LENGTH * MOE.vocab_size * LOGIT_BYTES,
    }


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"


def row(**values: float) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value / 1e9:.2f}B" for name, value in values.items())


if __name__ == "__main__":
    main()
