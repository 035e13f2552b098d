"""What does more text buy, dense and as a mixture? A small model trained on and its MoE of copies, at five budgets.

    python benchmarks/sweep.py --tokenizer DIR --data TRAIN.jsonl --validation VALIDATION.jsonl

A small Llama is trained first. From it go two sweeps, runs/sweep/dense and runs/sweep/moe, over text that it has not
read: the same blocks, the same held-out text. What is trained already is not trained again. Each seed of each is a
process of one thread, so many at once as there are workers. Writes the tables into docs/how-to/sweep.md
and the figure into docs/images.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe, put_between

if TYPE_CHECKING:
    from smolmoe.core.statistics import Interval
    from smolmoe.results.scaling_law import Sweep
    from smolmoe.scaling.law import Fit

ARMS = ("moe", "dense")  # the longer first, so that the workers end together
TOKENS = (51_200, 102_400, 204_800, 409_600, 819_200)
LENGTH, BATCH = 256, 4
START_STEPS = 200  # of the model that both go on from
SHAPE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
TRAINER = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "warmup_stable_decay",
    "warmup_steps": 10,
    "adam_beta2": 0.99,
    "report_to": "none",
}
DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    arguments = parse_arguments()
    if arguments.one is not None:
        arm, seed = arguments.one.split(":")
        run(arguments, arm, (int(seed),))
        return
    make_starts(arguments)
    for arm in ARMS:
        begin(arguments, arm)
    jobs = [f"{arm}:{seed}" for arm in ARMS for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(start, jobs))
    text = tables({arm: run(arguments, arm, tuple(arguments.seeds)) for arm in ARMS[::-1]}, arguments)
    if arguments.write:
        put_between(DOCS / "how-to" / "sweep.md", "sweep", text)
    print(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tokenizer", "data", "validation"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--no-write", dest="write", action="store_false", help="only print")
    parser.add_argument("--one", metavar="ARM:SEED", help="only this")
    return parser.parse_args()


def start(job: str) -> None:
    """One seed of one arm, in a process of one thread."""
    command = [sys.executable, *sys.argv, "--one", job]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job}: {done.stderr}")
    print(f"{job}: done", flush=True)


def make_starts(arguments: argparse.Namespace) -> None:
    """The dense model, trained where it is not there, and its MoE of copies."""
    from smolmoe.surgery.run import upcycle
    from smolmoe.training.run import train

    dense, moe = (start_of(arguments, arm) for arm in ("dense", "moe"))
    if not (dense / "smolmoe.json").is_file():
        trainer = TRAINER | {"max_steps": START_STEPS, "lr_scheduler_type": "constant_with_warmup"}
        new = {"model": {"config": SHAPE, "attention": "eager"}, "tokenizer": str(arguments.tokenizer)}
        data = data_of(arguments)
        train({**new, "data": data, "trainer": trainer, "device": "cpu", "out": str(dense.parent)}, overwrite=True)
    if not (moe / "smolmoe.json").is_file():
        upcycle(dense, moe, experts=8, top_k=2, overwrite=True)


def start_of(arguments: argparse.Namespace, arm: str) -> Path:
    return arguments.root / ("start/model" if arm == "dense" else "start-moe")


def data_of(arguments: argparse.Namespace) -> dict[str, Any]:
    sources = {"sources": [{"path": str(arguments.data)}], "validation": [{"path": str(arguments.validation)}]}
    return {**sources, "length": LENGTH}


def recipe(arguments: argparse.Namespace, arm: str) -> dict[str, Any]:
    values = {
        "model": {"path": str(start_of(arguments, arm)), "attention": "eager"},
        "data": {**data_of(arguments), "skip": START_STEPS * BATCH},
        "evaluation": {"tokens": 4000},
        "trainer": TRAINER,
        "device": "cpu",
    }
    return values | ({"objective": {"load_balance": 0.01, "z_loss": 0.001}} if arm == "moe" else {})


def request(arguments: argparse.Namespace, arm: str, seeds: tuple[int, ...]) -> Any:
    from smolmoe.recipe import parse
    from smolmoe.recipe.sweep import SweepRecipe

    asked = {"tokens": tuple(arguments.tokens), "seeds": seeds, "out": str(arguments.root / arm)}
    return parse(SweepRecipe, asked)


def begin(arguments: argparse.Namespace, arm: str) -> None:
    """The sweep's folder, before several processes write into it."""
    from smolmoe.scaling.plan import make_plan
    from smolmoe.scaling.runs import Runs

    plan = make_plan(arm, recipe(arguments, arm), request(arguments, arm, (0,)))
    Runs(plan, lambda what, done, total: None).open(overwrite=False)


def run(arguments: argparse.Namespace, arm: str, seeds: tuple[int, ...]) -> Sweep:
    import torch

    from smolmoe.scaling.run import sweep

    torch.set_num_threads(1)
    return sweep(arm, recipe(arguments, arm), request(arguments, arm, seeds))


# -- what came out -----------------------------------------------------------------------------------------------------


def tables(sweeps: dict[str, Sweep], arguments: argparse.Namespace) -> str:
    """The findings in Markdown; the figure of both goes beside the page."""
    fits = fitted(sweeps, arguments.root)
    lines = [*_losses(sweeps, fits), "", *_laws(sweeps), "", *_further(sweeps, fits)]
    if arguments.write:
        draw(sweeps, DOCS / "images" / "sweep.png")
    first = sweeps["dense"]
    said = describe()
    seconds = sum(point.seconds for sweep in sweeps.values() for point in sweep.curves[0].points)
    held_out = first.held_out
    lines += [
        "",
        f"{first.schedule.text} {first.uncertainty.text} Held out: {held_out.tokens:,} tokens of "
        f"{held_out.documents} documents. The text to train on has {first.training_tokens:,} tokens.",
        "",
        f"Measured on {said['cpu']}, one thread a run, torch {said['torch']}, transformers {said['transformers']}; the "
        f"decays took {seconds / 60:.0f} minutes of one core, without the trunks.",
    ]
    return "\n".join(lines)


def fitted(sweeps: dict[str, Sweep], root: Path) -> dict[str, Fit]:
    """Both laws with the same documents drawn, so that their difference has an interval."""
    import json

    import numpy as np

    from smolmoe.scaling.law import fit_curves
    from smolmoe.scaling.law_noise import Observed

    observed, starts = [], []
    for arm, sweep in sweeps.items():
        (curve,) = sweep.curves
        files = {
            (p.tokens, p.seed): json.loads((root / arm / p.run / "held_out.json").read_text()) for p in curve.points
        }
        tokens, seeds = (sorted({key[part] for key in files}) for part in (0, 1))
        nll = np.array([[files[n, seed]["nll"] for seed in seeds] for n in tokens], dtype=float)
        counts = np.array(next(iter(files.values()))["tokens"], dtype=float)
        observed.append(Observed(np.array(tokens, dtype=float), nll, counts))
        starts.append(curve.dense_tokens)
    return dict(zip(sweeps, fit_curves(observed, starts), strict=True))


def _losses(sweeps: dict[str, Sweep], fits: dict[str, Fit]) -> list[str]:
    from smolmoe.scaling.law import interval

    dense, moe = (fits[arm] for arm in ("dense", "moe"))
    means = {arm: fit.observed.losses.mean(axis=1) for arm, fit in fits.items()}
    lines = ["| tokens | dense | MoE | the MoE gains |", "| --- | --- | --- | --- |"]
    before = [sweeps[arm].curves[0].start_loss for arm in ("dense", "moe")]
    if None not in before:
        lines.append(f"| before | {before[0]:.4f} | {before[1]:.4f} | |")
    for at, tokens in enumerate(dense.observed.tokens):
        gap = interval(float(means["dense"][at] - means["moe"][at]), dense.losses[:, at] - moe.losses[:, at])
        cells = (ends(sweeps[arm].curves[0].budgets[at].loss) for arm in ("dense", "moe"))
        lines.append(f"| {int(tokens):,} | {' | '.join(cells)} | {ends(gap)} |")
    return lines


def _laws(sweeps: dict[str, Sweep]) -> list[str]:
    lines = [
        "| | E | α | 10x from the first budget | 10x from the largest | notes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm, sweep in sweeps.items():
        (curve,) = sweep.curves
        if curve.law is None:
            lines.append(f"| {arm} | | | | | {curve.reason} |")
            continue
        first, last = curve.tenfold[0], curve.tenfold[-1]
        numbers = (ends(curve.law.offset), ends(curve.law.exponent)) if curve.law.identified else ("", "")
        cells = (*numbers, ends(first.drop), ends(last.drop), " ".join(curve.law.notes))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _further(sweeps: dict[str, Sweep], fits: dict[str, Fit]) -> list[str]:
    """The difference of the laws, within the budgets and ten times beyond."""
    import numpy as np

    from smolmoe.scaling.law import interval

    if any(fit.best is None for fit in fits.values()):
        return []
    largest = sweeps["dense"].largest
    places = np.array([largest, 3 * largest, 10 * largest], dtype=float)
    (dense, drawn), (moe, drawn_moe) = (fits[arm].at(places) for arm in ("dense", "moe"))
    said = [
        f"{ends(interval(float(dense[at] - moe[at]), drawn[:, at] - drawn_moe[:, at]))} at {int(tokens):,}"
        for at, tokens in enumerate(places)
    ]
    return [f"By the two laws the MoE gains, in nats a token: {'; '.join(said)} (the last two are extrapolated)."]


def draw(sweeps: dict[str, Sweep], path: Path) -> None:
    from smolmoe.reports.drawing import save_figure
    from smolmoe.reports.scaling import curves_figure

    first = next(iter(sweeps.values()))
    figure = curves_figure(
        [sweep.curves[0] for sweep in sweeps.values()],
        largest=first.largest,
        name="sweep",
        title="Held-out loss by training tokens, one start: the dense model, and its MoE of copies",
        held_out=first.held_out,
    )
    save_figure(figure, path)


def ends(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


if __name__ == "__main__":
    main()
