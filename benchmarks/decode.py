"""Decoding: an MoE beside the dense model it is made of, and beside the stock implementations of its experts.

    python benchmarks/decode.py [--threads 1 2] [--rounds 5] [--only bf16/B1]
    python benchmarks/decode.py --table

SmolLM-135M's shape (hidden 576, FFN 1536, 30 layers, vocabulary 49152, tied), random weights; the MoE has 8 experts,
top-2. Prompts of 32 tokens are continued greedily by `generate` of transformers; a token is the median step after the
first. The contenders of a case take turns within one process, so that a slow moment of the machine hits all of them.
Cases go to results/decode.json as they are done; those of the same commit are not measured again. The table goes to
docs/reference/speed.md.

- dense, smolmoe: as `smolmoe generate` runs them;
- dense, stock; eager, grouped_mm, batched_mm: as transformers alone runs them, the last for single prompts only;
- smolmoe, static cache: the same with a cache that is allocated once.

With --compile also dense and smolmoe with a static cache and compiled, for one prompt; compiling takes minutes.
At one thread the processor's time is taken, which other programs touch less, at more the clock's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any, NamedTuple

from grid import options, results, show
from machine import HERE

RESULTS = HERE / "results" / "decode.json"
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
EXPERTS, TOP_K = 8, 2
PROMPT, NEW = 32, 17
STOCK = ("eager", "grouped_mm", "batched_mm")
ASKED = 0.9  # of the dense model's tokens/s, by the bytes that a token reads


class Case(NamedTuple):
    threads: int
    dtype: str
    batch: int
    compiled: bool

    @property
    def name(self) -> str:
        return f"{self.threads} threads/{self.dtype}/B{self.batch}{'/compiled' if self.compiled else ''}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="also with compiled models")
    arguments = parser.parse_args()
    models: dict[str, tuple[Any, Any]] = {}

    def measure_one(case: Case) -> dict[str, Any]:
        if case.dtype not in models:
            models.clear()  # of one number type at a time
            models[case.dtype] = make_models(case.dtype, arguments.layers)
        return {"layers": arguments.layers, **measure(case, *models[case.dtype], arguments.rounds)}

    found = results(arguments, RESULTS, cases(arguments), measure_one)
    show("decode", found, table(found["cases"]), only_print=arguments.print)


def cases(arguments: argparse.Namespace) -> list[Case]:
    compiled = [False, True] if arguments.compile else [False]
    return [
        Case(threads, dtype, batch, is_compiled)
        for dtype in ("bf16", "fp32")
        for is_compiled in compiled
        for threads in arguments.threads
        for batch in (arguments.batches if not is_compiled else [1])
    ]


def make_models(dtype: str, layers: int, shape: dict[str, Any] = SHAPE) -> tuple[Any, Any]:
    """The dense model and the MoE, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    import smolmoe

    smolmoe.register()
    torch.manual_seed(0)
    shape = {**shape, "num_hidden_layers": layers, "dtype": {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]}
    sparse = MixtralConfig(**shape, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K, sliding_window=None)
    return filled(LlamaForCausalLM, LlamaConfig(**shape)), filled(MixtralForCausalLM, sparse)


def filled(kind: Any, config: Any) -> Any:
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = kind._from_config(config)
    for name, parameter in list(model.named_parameters()):
        path, _, key = name.rpartition(".")
        value = torch.empty(parameter.shape, dtype=parameter.dtype).uniform_(-0.03, 0.03)
        setattr(model.get_submodule(path), key, torch.nn.Parameter(value))
    model.tie_weights()
    return model.eval()


def measure(case: Case, dense: Any, moe: Any, rounds: int) -> dict[str, Any]:
    """Median seconds a step of each contender, dense over smolmoe of each round, the parameters a token reads."""
    import torch

    from smolmoe.moe.size import size_of

    torch.set_num_threads(case.threads)
    clock = time.process_time if case.threads == 1 else time.perf_counter
    contenders = compiled_contenders(dense, moe) if case.compiled else plain_contenders(dense, moe, case.batch)
    taken: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items() if number % 2 else reversed(contenders.items()):
            steps = decode(*contender, batch=case.batch, new=NEW if number else 3, clock=clock)
            if number:
                taken[name].append(steps)
    medians = {name: statistics.median(step for steps in runs for step in steps) for name, runs in taken.items()}
    pairs = zip(taken["dense"], taken["smolmoe"], strict=True)
    ratios = [statistics.median(one) / statistics.median(other) for one, other in pairs]
    touched = {name: size_of(model).multiplied for name, model in (("dense", dense), ("moe", moe))}
    return {"seconds": medians, "ratios": ratios, "rounds": rounds, "parameters": touched}


Contender = tuple[Any, str | None, bool, dict[str, Any]]  # model, its experts, as `smolmoe generate` does it, options


def plain_contenders(dense: Any, moe: Any, batch: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "dense": (dense, None, True, {}),
        "dense, stock": (dense, None, False, {}),
        "smolmoe": (moe, "smolmoe", True, {}),
        "smolmoe, static cache": (moe, "smolmoe", True, {"cache_implementation": "static", "disable_compile": True}),
    }
    return found | {name: (moe, name, False, {}) for name in STOCK if name != "batched_mm" or batch == 1}


def compiled_contenders(dense: Any, moe: Any) -> dict[str, Contender]:
    from transformers import CompileConfig

    compiled = CompileConfig(fullgraph=False, mode="default")
    compiled._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": compiled}
    return {
        "dense": (dense, None, True, {}),
        "smolmoe": (moe, "smolmoe", True, {}),
        "dense, compiled": (dense, None, True, options),
        "smolmoe, compiled": (moe, "smolmoe", True, options),
    }


def decode(
    model: Any, experts: str | None, fast: bool, options: dict[str, Any], *, batch: int, new: int, clock: Any
) -> list[float]:
    """Seconds of each step after the first."""
    from smolmoe.evaluation.speed import read_speed
    from smolmoe.inference.decoding import fast_decoding

    if experts is not None:
        model.set_experts_implementation(experts)
    with fast_decoding(model) if fast else nullcontext():
        reading = read_speed(
            model, batch_size=batch, prompt_tokens=PROMPT, new_tokens=new, clock=clock, options=options
        )
    return list(reading.tokens)


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Markdown: the target, then every contender's milliseconds a step."""
    ordered = sorted(cases.values(), key=lambda case: (case["dtype"], case["threads"], case["batch"]))
    plain = [case for case in ordered if not case["compiled"]]
    lines = [*_targets([case for case in plain if case["batch"] == 1]), "", *_grid(plain)]
    compiled = [case for case in ordered if case["compiled"]]
    return "\n".join(lines + (["", *_grid(compiled)] if compiled else []))


def _targets(cases: list[dict[str, Any]]) -> list[str]:
    columns = (
        "",
        "threads",
        "dense, tokens/s",
        "MoE, tokens/s",
        "ratio",
        "by bytes",
        "to the stock dense",
        "asked",
        "",
    )
    lines = [
        "One prompt. *By bytes*: the MoE's tokens/s over the dense model's (the median round; lowest and highest), "
        "times the bytes that a token reads of the MoE over those of the dense; 1 where both are read at the same "
        "speed.",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
    ]
    for case in cases:
        taken, sizes = case["seconds"], case["parameters"]
        of_bytes = sizes["moe"] / sizes["dense"]
        ratio, stock = statistics.median(case["ratios"]), taken["dense, stock"] / taken["smolmoe"]
        low, high = (of_bytes * bound(case["ratios"]) for bound in (min, max))
        cells = (
            case["dtype"],
            case["threads"],
            f"{1 / taken['dense']:.1f}",
            f"{1 / taken['smolmoe']:.1f}",
            f"{ratio:.2f}",
            f"{ratio * of_bytes:.2f} ({low:.2f} to {high:.2f})",
            f"{stock * of_bytes:.2f}",
            ASKED,
            "met" if ratio * of_bytes >= ASKED else "not met",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _grid(cases: list[dict[str, Any]]) -> list[str]:
    if not cases:
        return []
    names = list(dict.fromkeys(name for case in cases for name in case["seconds"]))
    lines = [
        "Milliseconds a step, of all prompts together:",
        "",
        f"| | threads | prompts | {' | '.join(names)} |",
        f"| --- | --- | --- | {' | '.join('---' for _ in names)} |",
    ]
    for case in cases:
        cells = [f"{1e3 * case['seconds'][name]:.1f}" if name in case["seconds"] else "" for name in names]
        lines.append(f"| {case['dtype']} | {case['threads']} | {case['batch']} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
