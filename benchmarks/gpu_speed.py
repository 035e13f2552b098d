"""The parts of benchmarks/gpu.py that measure time and memory."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

from gpu_setting import Setting, implementations, spread, take_turns
from layer import Case, call, make_layers

# Hidden size, experts, experts a token, width: SmolLM-135M's FFN, the same in 64 small experts, Qwen3-30B-A3B's and
# Mixtral-8x7B's layers.
SHAPES = ((576, 8, 2, 1536), (576, 64, 8, 192), (2048, 128, 8, 768), (4096, 8, 2, 14336))
TOKENS = (1, 4, 16, 64, 512, 4096, 16384)
NUMBERS = ("bf16", "autocast", "fp32")  # autocast: weights in fp32, as in training
CACHE_BYTES = 2**28  # a forward pass goes through layers in turn, so that no cache holds the weights
COPIED_BYTES = 2**33  # of weights that batched_mm may copy
CASE_SECONDS = 0.4
PROMPT, NEW = 128, 33


# -- layer -------------------------------------------------------------------------------------------------------------


class LayerCase(NamedTuple):
    size: int
    experts: int
    top_k: int
    width: int
    numbers: str
    direction: str
    tokens: int

    @property
    def name(self) -> str:
        shape = f"D{self.size}/E{self.experts}/K{self.top_k}/I{self.width}"
        return f"{shape}/{self.numbers}/{self.direction}/T{self.tokens}"


def layer_cases(tiny: bool) -> list[LayerCase]:
    """The shape of the other parts first; fp32 alone for it."""
    if tiny:
        kinds = [("bf16", "forward"), ("autocast", "both"), ("fp32", "both")]
        return [LayerCase(32, 4, 2, 48, *kind, tokens) for kind in kinds for tokens in (1, 16)]
    return [
        LayerCase(*shape, numbers, direction, tokens)
        for shape in SHAPES
        for numbers in NUMBERS[: 3 if shape == SHAPES[0] else 2]
        for direction in ("forward", "both")
        for tokens in TOKENS
    ]


def part_layer(setting: Setting) -> Iterator[dict[str, Any]]:
    """Ours against each stock implementation, and a dense FFN of equal active FLOPs."""
    yield from setting.each(layer_cases(setting.tiny), lambda case: layer(setting, case), lambda case: case.name)


def layer(setting: Setting, case: LayerCase) -> dict[str, Any]:
    import torch

    from smolmoe.moe.kernels.register import stock_choice

    torch.manual_seed(0)
    weights = torch.bfloat16 if case.numbers == "bf16" else torch.float32
    expert_bytes = 3 * case.size * case.width * weights.itemsize
    copies = 1 if case.direction == "both" or setting.tiny else max(2, CACHE_BYTES // (case.experts * expert_bytes))
    shape = Case(1, case.numbers, case.direction, case.tokens, case.experts, case.top_k, case.width)
    layers, dense = make_layers(shape, weights, copies, size=case.size, device=setting.device)
    for module in (*layers, *dense):
        module.to(weights)
    x = torch.randn(case.tokens, case.size, device=setting.device).to(weights)
    gates, index = torch.randn(case.tokens, case.experts, device=setting.device).softmax(-1).topk(case.top_k)
    given = (x, index, (gates / gates.sum(-1, keepdim=True)).to(weights))
    grad = torch.randn_like(x)
    turn, dense_turn = cycle(layers), cycle(dense)

    def lowered() -> Any:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=case.numbers == "autocast")

    def of(name: str) -> Callable[[], None]:
        def run() -> None:
            one = next(turn)
            one.config._experts_implementation = name
            with lowered():
                call(shape, one, given, grad)

        return run

    def of_dense() -> None:
        with lowered():
            call(shape, next(dense_turn), (x,), grad)

    copied = case.tokens * case.top_k * expert_bytes
    stock = [name for name in implementations(setting) if name != "batched_mm" or copied <= COPIED_BYTES]
    with lowered():
        chosen = "ours, on the CPU" if not setting.on_gpu else stock_choice(layers[0], x, index)
    found = take_turns(setting, {name: of(name) for name in ("smolmoe", *stock)} | {"dense": of_dense}, CASE_SECONDS)
    times = {name: entry["median"] for name, entry in found["seconds"].items() if name in stock}
    fastest = min(times, key=lambda name: times[name]) if times else None
    ours = found["seconds"].get("smolmoe", {}).get("median")
    ratio = ours / times[fastest] if ours and fastest else None
    return {**case._asdict(), **found, "chosen": chosen, "fastest": fastest, "ratio": ratio}


# -- step --------------------------------------------------------------------------------------------------------------


def part_step(setting: Setting) -> Iterator[dict[str, Any]]:
    """Training steps of each kind of benchmarks/step.py, in turns; weights in fp32 with bf16 autocast."""
    from step import KINDS

    rounds = 1 if setting.tiny else 2
    cases = [(kind, number) for number in range(rounds) for kind in (KINDS if number % 2 == 0 else reversed(KINDS))]
    yield from setting.each(cases, lambda case: step(setting, case[0]), lambda case: f"{case[0]}, round {case[1]}")


def step(setting: Setting, kind: str) -> dict[str, Any]:
    import torch

    from smolmoe.evaluation.memory import PeakMemory
    from step import LENGTH, OURS, SHAPE, VOCABULARY, Watch, make_model, ours, plain

    tiny = {"vocab_size": 512, "hidden_size": 72, "max_position_embeddings": 64}
    shape, width, length = (SHAPE | tiny, 48, 32) if setting.tiny else (SHAPE, 1536, LENGTH)
    layers, sequences, steps = (2, 2, 2) if setting.tiny else (30, 16, 10)
    asked = argparse.Namespace(kind=kind, layers=layers, sequences=sequences, steps=steps, device=setting.device)
    torch.manual_seed(0)
    memory = PeakMemory(setting.device)
    with torch.device(setting.device):
        model = make_model(kind, layers, shape=shape, width=width)
    rows = torch.randint(0, shape.get("vocab_size", VOCABULARY), (sequences * (steps + 1), length))
    data = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        trainer = (ours if kind in OURS else plain)(model, data, asked, folder)
        watch = Watch(setting.wait)
        trainer.add_callback(watch.callback())
        trainer.train()
    taken = spread(watch.seconds[1:])
    return {
        "kind": kind,
        "seconds": taken,
        "tokens_per_second": sequences * length / taken["median"],
        "peak_bytes": memory.peak(),
        "experts": getattr(model.config, "_experts_implementation", None),
        "settings": {"layers": layers, "sequences": sequences, "length": length, "steps": steps},
    }


# -- decode, memory ----------------------------------------------------------------------------------------------------


def part_decode(setting: Setting) -> Iterator[dict[str, Any]]:
    """Seconds of a step of `generate`, bf16, greedy: of 1, 16 and 64 prompts."""
    models = decoding_models(setting)
    batches = (1, 2) if setting.tiny else (1, 16, 64)
    yield from setting.each(batches, lambda batch: decode(setting, models, batch), lambda batch: f"{batch} prompts")


def decoding_models(setting: Setting) -> tuple[Any, Any]:
    from decode import SHAPE, make_models

    small = {"vocab_size": 256, "hidden_size": 72, "intermediate_size": 48}
    found = make_models("bf16", 2 if setting.tiny else 30, SHAPE | small if setting.tiny else SHAPE)
    dense, moe = (model.to(setting.device) for model in found)
    return dense, moe


def decode(setting: Setting, models: tuple[Any, Any], batch: int) -> dict[str, Any]:
    from smolmoe.evaluation.speed import read_speed

    dense, moe = models
    prompt, new = (8, 5) if setting.tiny else (PROMPT, NEW)
    contenders = {"dense": (dense, None), **{name: (moe, name) for name in ("smolmoe", *implementations(setting))}}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    first: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    for number in range(2 if setting.tiny else 5):
        for name, (model, experts) in contenders.items() if number % 2 == 0 else reversed(contenders.items()):
            if name in errors or (number > 1 and setting.left <= 0):
                continue
            try:
                if experts is not None:
                    model.set_experts_implementation(experts)
                reading = read_speed(model, batch_size=batch, prompt_tokens=prompt, new_tokens=new)
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            if number:  # the first warms up
                found[name] += reading.tokens
                first[name].append(reading.first_token)
    seconds = {name: spread(steps) for name, steps in found.items() if steps}
    return {
        "batch": batch,
        "seconds": seconds,
        "first_token": {name: spread(taken) for name, taken in first.items() if taken},
        "tokens_per_second": {name: batch / entry["median"] for name, entry in seconds.items()},
        "errors": errors,
    }


def part_memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """Generation of one prompt with all experts on the GPU, and with experts in CPU memory and three sizes of cache."""
    budgets: list[float | None] = [None, 0.0, *((0.5, 0.75) if setting.tiny else (0.25, 0.5))]
    names = {None: "all experts on the device", 0.0: "the default cache"}
    yield from setting.each(
        budgets,
        lambda share: offloaded(setting, share),
        lambda share: names.get(share, f"a cache of {share:.0%} of the experts" if share else ""),
    )


def offloaded(setting: Setting, share: float | None) -> dict[str, Any]:
    """A `share` of the experts' bytes as cache; 0 for the default, None for no offloading."""
    from smolmoe.evaluation.memory import PeakMemory
    from smolmoe.evaluation.speed import read_speed
    from smolmoe.inference.offload import offload_experts

    _, moe = decoding_models(Setting("cpu", setting.tiny, setting.end))
    moe.set_experts_implementation("smolmoe")
    memory, traffic = PeakMemory(setting.device), None
    if share is None:
        moe.to(setting.device)
    else:
        sizes = [p.nbytes for name, p in moe.named_parameters() if ".experts." in name]
        traffic = offload_experts(moe, device=setting.device, expert_memory=int(share * sum(sizes)) or None)
    prompt, new = (8, 5) if setting.tiny else (PROMPT, NEW)
    read_speed(moe, prompt_tokens=prompt, new_tokens=3)
    before, begun = (traffic.moved_bytes if traffic else 0), time.perf_counter()
    reading = read_speed(moe, prompt_tokens=prompt, new_tokens=new)
    taken = spread(reading.tokens)
    return {
        "share": share,
        "peak_bytes": max(memory.peak(), reading.peak_bytes),
        "seconds": taken,
        "tokens_per_second": 1 / taken["median"],
        "moved_bytes": traffic.moved_bytes - before if traffic else 0,
        "generating": time.perf_counter() - begun,
        "hits": traffic.hits if traffic else None,
        "misses": traffic.misses if traffic else None,
        "budget_bytes": traffic.budget_bytes if traffic else None,
        "experts_bytes": traffic.experts_bytes if traffic else None,
    }
