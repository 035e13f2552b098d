"""What do SFT, DPO and CPO do to a small MoE that is to correct grammar? Beside copying the input, on held-out rows.

    python benchmarks/correction.py run --model DIR --data ROWS.jsonl [--data ...]
    python benchmarks/correction.py table

The dense model becomes an MoE of copies; answers (SFT), pairs of its own answers, then preferences with a reference
model (DPO) and without one (CPO) follow the shipped pipelines, with rates for a model this small. A fifth of the
rows, by a hash of the text, is held out. Stages go to runs/correction; finished ones are skipped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path("runs/correction")
HELD_OUT = 0.2
STAGES = ("sft", "dpo", "cpo")
METRICS = {"bleu": "BLEU", "gleu": "GLEU", "sari": "SARI", "exact_match": "exact match"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments)
    else:
        write_results()


def run(arguments: argparse.Namespace) -> None:
    import torch

    from smolmoe import upcycle
    from smolmoe.pipeline.run import run as run_pipeline
    from smolmoe.recipe import PipelineRecipe, parse

    torch.set_num_threads(1)
    ROOT.mkdir(parents=True, exist_ok=True)
    files = split(arguments.data, ROOT)
    if not (ROOT / "moe" / "smolmoe.json").is_file():
        upcycle(arguments.model, ROOT / "moe", experts=8, top_k=2, seed=arguments.seed, overwrite=True)
    run_pipeline(parse(PipelineRecipe, pipeline(files, arguments.seed)))


def split(data: list[Path], folder: Path) -> dict[str, str]:
    """The rows in two files of a folder; texts with a correction of their own in both sources are taken once."""
    from smolmoe.data.embedded import is_held_out

    lines: dict[str, list[str]] = {"train": [], "held-out": []}
    seen = set()
    for path in data:
        for line in path.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["src"]
            if text not in seen:
                lines["held-out" if is_held_out(text, HELD_OUT) else "train"].append(line)
            seen.add(text)
    files = {side: folder / f"{side}.jsonl" for side in lines}
    for side, file in files.items():
        file.write_text("".join(f"{line}\n" for line in lines[side]), encoding="utf-8")
    return {side: str(file) for side, file in files.items()}


def pipeline(files: dict[str, str], seed: int) -> dict[str, Any]:
    """The shipped sft -> pairs -> dpo, and cpo from the same answers and pairs."""
    from smolmoe.recipe.files import load, merge

    values = load("gec-sft-dpo", [f"out={ROOT / 'stages'}"])
    cpo = next(stage for stage in load("gec-sft-cpo")["stages"] if stage["name"] == "cpo")
    values["stages"].append(cpo)
    everywhere = {"seed": seed, "device": "cpu", "answers": 1000}
    quiet = {"report_to": "none", "save_total_limit": 1, "lr_scheduler_type": "cosine"}
    sft = {
        "model": {"path": str(ROOT / "moe"), "attention": "eager"},
        "data": {"train": [files["train"]], "validation": [files["held-out"]], "length": 256},
        "trainer": {**quiet, "learning_rate": 1e-3, "num_train_epochs": 3, "warmup_steps": 30, "adam_beta2": 0.99},
    }
    preferences = {
        "data": {"corrections": files["held-out"], "held_out": 0.1, "length": 256},
        "trainer": {**quiet, "learning_rate": 2e-5},
    }
    changes = {
        "sft": {"align": merge(everywhere, sft)},
        "pairs": {
            "pairs": {"data": files["train"], "prompts": 400, "seed": seed, "device": "cpu", "max_new_tokens": 64}
        },
        "dpo": {"align": merge(everywhere, preferences)},
        "cpo": {"align": merge(everywhere, preferences)},
    }
    return merge(values, {"stages": changes})


def write_results() -> None:
    """Put the table into docs/reference/results.md, between the markers there."""
    from machine import describe, put_between

    text = f"{show()}\n\nMeasured on {describe()['cpu']}, one thread."
    put_between(Path(__file__).resolve().parents[1] / "docs" / "reference" / "results.md", "correction", text)
    print(text)


def show() -> str:
    found = {name: json.loads((ROOT / "stages" / name / "summary.json").read_text()) for name in STAGES}
    first = found["sft"]["corrections"]["before"]
    rows = [
        _row("copying the input", first["copy"]),
        _row("a person, compared with the other references", first["human"]),
    ]
    rows.append(_row("the MoE before", first["model"]))
    rows += [_row(name.upper(), summary["corrections"]["after"]["model"]) for name, summary in found.items()]
    lines = [f"| | {' | '.join(METRICS.values())} | unchanged |", "| --- |" + " --- |" * (len(METRICS) + 1)]
    return "\n".join([*lines, *(row for row in rows if row), "", *_training(found)])


def _row(name: str, scores: dict[str, Any] | None) -> str:
    if scores is None:
        return ""
    found = [scores["metrics"][key] for key in METRICS]
    cells = [f"{metric['value']:.1f} [{metric['low']:.1f}, {metric['high']:.1f}]" for metric in found]
    return f"| {name} | {' | '.join(cells)} | {scores['unchanged']:.0%} |"


def _training(found: dict[str, Any]) -> list[str]:
    lines = ["| stage | steps | seconds | held-out loss | router choices changed |", "| --- |" + " --- |" * 4]
    for name, summary in found.items():
        loss = f"{summary['before']['loss']:.4f} → {summary['after']['loss']:.4f}"
        drift = summary["drift"]["changed"]
        lines.append(f"| {name} | {summary['steps']} | {summary['train_seconds']:.0f} | {loss} | {drift:.1%} |")
    return lines


if __name__ == "__main__":
    main()
