"""How well Adam's moments carry from a dense model into an MoE: predicted against measured, on real gradients.

    python benchmarks/moments.py MODEL TEXT.jsonl

The same batches go through the dense model and through each MoE made of it. The means of the dense gradients and of
their squares are carried as if they were Adam's m and v, and set beside those of the MoE's own gradients. Then one more
batch: how far the first step moves an entry on average, in learning rates (a fresh Adam moves every entry by 1).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smolmoe.core.checkpoint import open_checkpoint
from smolmoe.data.text import read_documents
from smolmoe.errors import RequestError
from smolmoe.families.spec import read_spec
from smolmoe.moe.loading import load_model, load_tokenizer
from smolmoe.recipe import UpcycleRecipe, parse
from smolmoe.surgery.convert import convert
from smolmoe.surgery.moments import Moments, carry_moments
from smolmoe.surgery.plan import Plan, make_plan

REQUESTS: dict[str, dict[str, Any]] = {
    "copy, E 8, K 2": {},
    "split, E 8, K 2, G 2": {"granularity": 2},
    "split, E 16, K 8, G 4": {"experts": 16, "top_k": 8, "granularity": 4},
    "shared full, E 8, K 2": {"shared": "full"},
    "shared half, independent, E 8, K 1": {"shared": "half", "top_k": 1, "gates": "independent"},
    "the same, complementary quarters, K 2": {
        "shared": "half",
        "gates": "independent",
        "granularity": 2,
        "subsets": "complementary",
    },
    "drop 0.5, E 8, K 2": {"diversify": "drop"},
}


def batches(model: Path, text: Path, count: int, rows: int, length: int) -> Iterator[torch.Tensor]:
    """Batches [rows, length] of consecutive tokens of the shuffled documents."""
    tokenizer = load_tokenizer(model)
    assert tokenizer is not None, f"{model} has no tokenizer"
    documents = read_documents(text)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
    tokens: list[int] = []
    for index in order:
        tokens += tokenizer(documents[index].text, verbose=False)["input_ids"]
        if len(tokens) >= count * rows * length:
            break
    yield from torch.tensor(tokens[: count * rows * length]).view(count, rows, length)


def gradient_moments(model: Any, data: list[torch.Tensor]) -> dict[str, Moments]:
    """Mean over batches of each parameter's gradient, and of its square."""
    named = dict(model.named_parameters())
    sums = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in named.items()}
    for batch in data:
        model.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        for name, parameter in named.items():
            if parameter.grad is not None:
                sums[name][0].add_(parameter.grad)
                sums[name][1].addcmul_(parameter.grad, parameter.grad)
    return {name: Moments(m / len(data), v / len(data), len(data)) for name, (m, v) in sums.items()}


def made(model: Path, out: Path, **options: Any) -> Plan:
    if options.get("shared") == "half":
        options["shared"] = read_spec(model).ffn_size // 2
    recipe = parse(UpcycleRecipe, {"source": str(model), "out": out, "dtype": "float32", **options})
    plan = make_plan(recipe, open_checkpoint(model))
    convert(plan)
    return plan


def first_step(state: Moments, gradient: torch.Tensor) -> torch.Tensor:
    """Adam's next step (beta 0.9 and 0.999) from a state that has been corrected for its start, in learning rates."""
    m, v = 0.9 * state.exp_avg + 0.1 * gradient, 0.999 * state.exp_avg_sq + 0.001 * gradient**2
    return (m / (v.sqrt() + 1e-12)).abs()


def kind_of(plan: Plan) -> dict[str, str]:
    """Each expert parameter's name in memory -> "expert gate, up", "shared down", ..."""
    downs = ("down", "output_linear")
    return {
        tensor.memory: f"{tensor.role} {'down' if any(word in tensor.memory for word in downs) else 'gate, up'}"
        for tensor in plan.tensors
        if tensor.role in ("expert", "shared")
    }


def rows(
    plan: Plan, carried: dict[str, Moments], measured: dict[str, Moments], last: dict[str, Moments]
) -> Iterator[tuple[str, float, float, float]]:
    """(projections, measured over predicted m, by regression, and v, by their sums; first step) over all layers."""
    kinds = kind_of(plan)
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name in kinds if kinds[name] == kind]
        m, expected_m = (torch.cat([one[n].exp_avg.reshape(-1) for n in names]) for one in (measured, carried))
        v, expected_v = (torch.cat([one[n].exp_avg_sq.reshape(-1) for n in names]) for one in (measured, carried))
        step = first_step(Moments(expected_m, expected_v, 0), torch.cat([last[n].exp_avg.reshape(-1) for n in names]))
        new = expected_m == 0
        for label, part in (("", ~new), (", drawn anew", new)):
            if part.any():
                slope = (m * expected_m)[part].sum() / expected_m[part].square().sum()
                yield (
                    kind + label,
                    float(slope),
                    float(v[part].sum() / expected_v[part].sum()),
                    float(step[part].mean()),
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    *data, last = batches(args.model, args.text, args.batches + 1, args.rows, args.length)
    model = load_model(args.model)
    dense, next_dense = gradient_moments(model, data), gradient_moments(model, [last])
    ffn = [name for name in dense if ".mlp." in name]
    share = sum(float(dense[n].exp_avg.square().sum()) for n in ffn) / sum(
        float(dense[n].exp_avg_sq.sum()) for n in ffn
    )
    step = torch.cat([first_step(dense[n], next_dense[n].exp_avg).reshape(-1) for n in ffn]).mean()
    print(
        f"{args.model.name}, {len(data)} batches of {args.rows} x {args.length} tokens. Dense FFNs: square of the mean "
        f"gradient {share:.3f} of the mean square; next step {float(step):.3f} learning rates.\n"
    )
    print("| MoE | tensors | m: measured / predicted | v: measured / predicted | first step |")
    print("| --- | --- | --- | --- | --- |")
    for label, options in REQUESTS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                plan = made(args.model, Path(folder) / "moe", **options)
            except RequestError as error:
                print(f"| {label} | refused: {error.message} | | | |")
                continue
            model = load_model(plan.recipe.out)
        measured, next_measured = gradient_moments(model, data), gradient_moments(model, [last])
        for kind, m, v, step in rows(plan, carry_moments(plan, dense), measured, next_measured):
            slope = "-" if "anew" in kind else f"{m:.3f}"
            print(f"| {label} | {kind} | {slope} | {v:.3f} | {step:.3f} |", flush=True)


if __name__ == "__main__":
    main()
