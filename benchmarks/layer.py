"""The MoE layer: ours beside the stock implementations of transformers, a dense FFN, and what the machine allows.

    python benchmarks/layer.py [--threads 1 2] [--seconds 4] [--only bf16/both/T512]
    python benchmarks/layer.py --table
    python benchmarks/layer.py --kept --print --threads 2 --only bf16/both/T64

One layer of experts on the CPU, random weights and routing, over tokens T, experts E, experts a token K and widths. The
contenders of a case take turns, one call each a round, so that a slow moment of the machine hits all of them; medians
are compared. Cases go to results/layer.json as they are done; those of the same commit are not measured again. The
table goes to docs/reference/speed.md, the plot to docs/images/layer.png.

- smolmoe, eager, grouped_mm, batched_mm: `experts_implementation` (the last only where the weights it copies fit);
- dense: a SwiGLU FFN of width K*I, which is of equal active FLOPs;
- products: the matrix products that the experts cannot do without, alone, into memory that is there;
- read: summing 64 MB that no cache holds, which gives the bandwidth;
- weights: summing the weights of the chosen experts, where they lie (forward only).

A forward pass alone goes through layers in turn, each call through the next one, more than caches hold, as decoding
does. Forward and backward is one layer whose gradients are freed afterwards, which is part of its time, as is getting
fresh memory from the system; with --kept it stays with the process, as while our engine trains. At one thread
the processor's time is taken, which other programs touch less, at more the clock's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import cycle
from typing import Any, NamedTuple

from grid import options, results, show
from machine import HERE
from smolmoe.core.allocator import kept_memory

RESULTS = HERE / "results" / "layer.json"
TOKENS = (1, 4, 16, 64, 512, 4096)
SIZE = 576  # of the hidden states, SmolLM-135M's
# Experts, experts a token, width: SmolLM-135M's FFN whole (the first is the one with targets), halves, eighths of it.
SHAPES = ((8, 2, 1536), (4, 1, 1536), (4, 2, 1536), (16, 4, 768), (32, 1, 768), (64, 8, 192))
STOCK = ("eager", "grouped_mm", "batched_mm")
READ_BYTES, CACHE_BYTES, COPIED_BYTES = 2**26, 2**28, 2**30
LEAST_ROUNDS, MOST_ROUNDS = 5, 60


class Case(NamedTuple):
    threads: int
    dtype: str
    direction: str
    tokens: int
    experts: int
    top_k: int
    width: int

    @property
    def name(self) -> str:
        shape = f"E{self.experts}/K{self.top_k}/I{self.width}"
        return f"{self.threads} threads/{self.dtype}/{self.direction}/T{self.tokens}/{shape}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring a case")
    parser.add_argument("--kept", action="store_true", help="freed memory stays with the process (with --print)")
    arguments = parser.parse_args()
    if arguments.kept and not arguments.print:
        parser.error("--kept is measured beside the table: with --print")
    asked = cases(arguments.threads)
    with kept_memory() if arguments.kept else nullcontext():
        found = results(arguments, RESULTS, asked, lambda case: measure(case, arguments.seconds))

    from layer_table import plot, table

    show("layer", found, table(found["cases"]), only_print=arguments.print)
    if not arguments.print:
        plot(HERE.parent / "docs" / "images" / "layer.png", found["cases"])


def cases(threads: list[int]) -> list[Case]:
    return [
        Case(count, dtype, direction, tokens, *shape)
        for count in threads
        for shape in SHAPES
        for dtype in ("bf16", "fp32")
        for direction in ("forward", "both")
        for tokens in TOKENS
    ]


def measure(case: Case, limit: float) -> dict[str, Any]:
    """Median seconds of each contender, and the bytes of the weights that the chosen experts have."""
    import torch

    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    contenders, touched = prepare(case)
    clock = time.process_time if case.threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():  # of each one call that is not counted
        run()
    begun = time.perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        for name, run in contenders.items() if number % 2 else reversed(contenders.items()):
            start = clock()
            run()
            taken[name].append(clock() - start)
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > limit:
            break
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {"seconds": medians, "rounds": number, "touched": touched, "bandwidth": READ_BYTES / medians["read"]}


def prepare(case: Case) -> tuple[dict[str, Callable[[], Any]], int]:
    """The contenders, each a call; the bytes that the forward pass must read."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[case.dtype]
    expert_bytes = 3 * SIZE * case.width * dtype.itemsize
    copies = 1 if case.direction == "both" else max(2, -(-CACHE_BYTES // (case.experts * expert_bytes)))
    layers, dense = make_layers(case, dtype, copies)
    x = torch.randn(case.tokens, SIZE).to(dtype)
    weights, index = torch.randn(case.tokens, case.experts).softmax(-1).topk(case.top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    grad = torch.randn_like(x)
    large = torch.randn(READ_BYTES // 4)

    turn, dense_turn = cycle(layers), cycle(dense)  # so that none finds in a cache what another has just read

    def of_layer(name: str) -> Callable[[], Any]:
        def run() -> None:
            layer = next(turn)
            layer.config._experts_implementation = name
            call(case, layer, (x, index, weights), grad)

        return run

    copied = case.tokens * case.top_k * expert_bytes
    names = [name for name in ("smolmoe", *STOCK) if name != "batched_mm" or copied < COPIED_BYTES]
    contenders = {name: of_layer(name) for name in names}
    contenders["dense"] = lambda: call(case, next(dense_turn), (x,), grad)
    contenders["products"] = products(case, turn, index.flatten().bincount().tolist(), dtype)
    contenders["read"] = lambda: large.sum()
    chosen = index.unique().tolist()
    if case.direction == "forward":
        contenders["weights"] = sums(turn, chosen)
    return contenders, len(chosen) * expert_bytes


def make_layers(
    case: Case, dtype: Any, copies: int, *, size: int = SIZE, device: str = "cpu"
) -> tuple[list[Any], list[Any]]:
    """Layers of experts, and dense FFNs of equal active FLOPs, with random weights."""
    import torch
    from transformers import LlamaConfig, MixtralConfig
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    import smolmoe

    smolmoe.register()
    sparse = MixtralConfig(
        hidden_size=size,
        intermediate_size=case.width,
        num_local_experts=case.experts,
        num_experts_per_tok=case.top_k,
    )
    dense = LlamaConfig(hidden_size=size, intermediate_size=case.top_k * case.width)
    with torch.device(device):
        layers = [MixtralExperts(sparse).to(dtype) for _ in range(copies)]
        for layer in layers:
            for parameter in layer.parameters():
                torch.nn.init.uniform_(parameter, -0.05, 0.05)
        return layers, [LlamaMLP(dense).to(dtype) for _ in range(copies)]


def call(case: Case, layer: Any, given: tuple[Any, ...], grad: Any) -> None:
    import torch

    if case.direction == "forward":
        with torch.no_grad():
            layer(*given)
        return
    leaves = [tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor for tensor in given]
    layer(*leaves).backward(grad)
    layer.zero_grad(set_to_none=True)


def products(case: Case, turn: Iterator[Any], counts: list[int], dtype: Any) -> Callable[[], None]:
    """The experts' matrix products and nothing else."""
    import torch

    most = max(counts)
    x, inner, pre = (torch.randn(most, width).to(dtype) for width in (SIZE, case.width, 2 * case.width))
    out, grad_up, grad_down = x.clone(), *(torch.zeros_like(stack) for stack in next(turn).parameters())

    def run() -> None:
        layer = next(turn)
        up, down = layer.gate_up_proj.detach(), layer.down_proj.detach()
        for expert, count in enumerate(counts):
            if count:
                torch.mm(x[:count], up[expert].t(), out=pre[:count])
                torch.mm(inner[:count], down[expert].t(), out=out[:count])
            if count and case.direction == "both":
                torch.mm(x[:count], down[expert], out=inner[:count])
                torch.mm(x[:count].t(), inner[:count], out=grad_down[expert])
                torch.mm(pre[:count], up[expert], out=out[:count])
                torch.mm(pre[:count].t(), x[:count], out=grad_up[expert])

    return run


def sums(turn: Iterator[Any], chosen: list[int]) -> Callable[[], None]:
    """Every weight of these experts read once, in the order of memory, and nothing else done with it."""
    import torch

    def run() -> None:
        for stack in next(turn).parameters():
            numbers = stack.detach().view(torch.float32)  # bf16 in pairs: converting them is no reading
            for expert in chosen:
                numbers[expert].sum()

    return run


if __name__ == "__main__":
    main()
