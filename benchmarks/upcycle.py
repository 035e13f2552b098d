"""Time and memory of upcycling a SmolLM-135M-shaped checkpoint to 8 experts, beside mergekit-moe and a plain copy.

    python benchmarks/upcycle.py            # or: make bench

Every figure is of a whole process, start-up included. The contenders take turns, so that whatever else the machine does
hits all of them. mergekit gets an environment of its own, made on the first run and kept in the user's cache folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import machine
from checkpoints import SMOLLM_135M, Shape, write_random
from environments import PEERS, environment, version_in
from processes import MB, Run, in_own_process, run

MERGEKIT = PEERS["mergekit"]
EXPERTS, TOP_K, SEED = 8, 2, 0
TARGET_SPEEDUP, TARGET_MB, GROWTH_MB = 4.0, 700, 20
DEPTHS = (15, 60)

Row = dict[str, Any]  # one contender's figures, as they are written to JSON


def write_mergekit_config(path: Path, source: Path) -> None:
    """Every expert the base model, random router: the same request as ours."""
    expert = [f"  - source_model: {source}", "    positive_prompts: []"]
    head = [f"base_model: {source}", "gate_mode: random", "dtype: bfloat16", f"experts_per_token: {TOP_K}", "experts:"]
    path.write_text("\n".join(head + expert * EXPERTS) + "\n")


class Bench:
    """One work folder, and how each contender is run in it."""

    def __init__(self, work: Path, smolmoe: list[str], mergekit: Path | None):
        self.work = work
        self.smolmoe = smolmoe
        self.mergekit = mergekit

    def source(self, shape: Shape) -> Path:
        folder = self.work / f"dense-{shape.layers}"
        if not folder.exists():
            in_own_process(write_random, folder, shape, SEED)
        return folder

    def upcycle(self, shape: Shape) -> Run:
        request = ["--experts", str(EXPERTS), "--top-k", str(TOP_K), "--seed", str(SEED), "--verify", "none"]
        request.append("--overwrite")
        return self._measure([*self.smolmoe, "upcycle", self.source(shape), self.work / "smolmoe-out", *request])

    def mergekit_moe(self, shape: Shape) -> Run:
        assert self.mergekit is not None
        config = self.work / f"mergekit-{shape.layers}.yml"
        write_mergekit_config(config, self.source(shape))
        out = self.work / "mergekit-out"
        shutil.rmtree(out, ignore_errors=True)
        return self._measure([self.mergekit / "mergekit-moe", config, out, "--quiet"])

    def copy(self) -> tuple[Run, float]:
        """`cp -r` of what upcycle wrote, and the seconds it then takes to flush the copy."""
        out, copied = self.work / "smolmoe-out", self.work / "copy"
        shutil.rmtree(copied, ignore_errors=True)
        result = self._measure(["cp", "-r", out, copied])
        started = time.perf_counter()
        for path in copied.iterdir():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return result, time.perf_counter() - started

    def _measure(self, command: Sequence[str | Path]) -> Run:
        os.sync()  # what the previous contender left in the write cache is not this one's burden
        return run(command, self.work / "log.txt", {"HF_HUB_OFFLINE": "1"})


def summary(runs: list[Run]) -> Row:
    """Medians and ranges of several runs of one contender; memory is the worst of them."""
    return {
        "seconds": spread([one.seconds for one in runs]),
        "cpu_seconds": spread([one.cpu_seconds for one in runs]),
        "anonymous_mb": round(max(one.anonymous for one in runs) / MB),
        "mapped_mb": round(max(one.mapped for one in runs) / MB),
        "resident_mb": round(max(one.resident for one in runs) / MB),
        "runs": [asdict(one) for one in runs],
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def measure(bench: Bench, shape: Shape, rounds: int) -> dict[str, Row]:
    """All contenders in turn, `rounds` times after one round that only warms the caches up."""
    contenders: dict[str, Callable[[], Run]] = {"smolmoe": lambda: bench.upcycle(shape)}
    if bench.mergekit is not None:
        contenders["mergekit-moe"] = lambda: bench.mergekit_moe(shape)
    runs: dict[str, list[Run]] = {name: [] for name in [*contenders, "cp -r"]}
    flushes: list[float] = []
    for number in range(rounds + 1):
        taken = {name: contender() for name, contender in contenders.items()}
        taken["cp -r"], flush = bench.copy()
        print(f"round {number}: " + ", ".join(f"{k} {v.seconds:.2f} s" for k, v in taken.items()), file=sys.stderr)
        if number == 0:
            continue
        for name, one in taken.items():
            runs[name].append(one)
        flushes.append(taken["cp -r"].seconds + flush)
    result = {name: summary(several) for name, several in runs.items()}
    result["cp -r, flushed"] = {"seconds": spread(flushes)}
    return result


def table(contenders: dict[str, Row], depths: dict[int, Row], written: int) -> str:
    lines = [
        f"| SmolLM-135M shape to {EXPERTS} experts, {written / 1e9:.2f} GB written "
        "| seconds: median (min to max) | peak anonymous, MB | peak mapped, MB | peak resident, MB |",
        "|---|---|---|---|---|",
    ]
    names = {
        "smolmoe": "`smolmoe upcycle --verify none` (flushed)",
        "mergekit-moe": f"`mergekit-moe` {MERGEKIT} (not flushed)",
    }
    for name, row in contenders.items():
        memory = " | ".join(str(row.get(key, "")) for key in ("anonymous_mb", "mapped_mb", "resident_mb"))
        lines.append(f"| {names.get(name, f'`{name}`')} | {range_text(row['seconds'])} | {memory} |")
    for layers, row in depths.items():
        memory = f"{row['anonymous_mb']} | {row['mapped_mb']} | {row['resident_mb']}"
        lines.append(f"| `smolmoe`, the same with {layers} layers | {range_text(row['seconds'])} | {memory} |")
    return "\n".join(lines)


def range_text(seconds: dict[str, float]) -> str:
    return f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})"


def judge(contenders: dict[str, Row], depths: dict[int, Row]) -> dict[str, bool]:
    """Each target in words, and whether it was met."""
    ours = contenders["smolmoe"]
    checks = {f"peak under {TARGET_MB} MB anonymous": ours["anonymous_mb"] < TARGET_MB}
    if "mergekit-moe" in contenders:
        times = contenders["mergekit-moe"]["seconds"]["median"] / ours["seconds"]["median"]
        checks[f"at least {TARGET_SPEEDUP:g} times as fast as mergekit-moe: {times:.1f} times"] = (
            times >= TARGET_SPEEDUP
        )
    shallow, deep = DEPTHS
    growth = depths[deep]["anonymous_mb"] - depths[shallow]["anonymous_mb"]
    checks[f"peak not growing with depth: {growth:+d} MB from {shallow} to {deep} layers"] = growth < GROWTH_MB
    return checks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is not (default 5)")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints, 8 GB free (default: a temporary one)")
    parser.add_argument("--without-mergekit", action="store_true", help="only smolmoe and the copy; records nothing")
    parser.add_argument("--smolmoe", help="another command to measure in its place; records nothing")
    options = parser.parse_args()

    mergekit = None if options.without_mergekit else environment("mergekit")
    command = shlex.split(options.smolmoe or str(Path(sys.executable).parent / "smolmoe"))
    with tempfile.TemporaryDirectory(dir=options.work, prefix="smolmoe-bench-") as work:
        bench = Bench(Path(work), command, mergekit)
        contenders = measure(bench, SMOLLM_135M, options.rounds)
        written = sum(path.stat().st_size for path in (bench.work / "smolmoe-out").rglob("*") if path.is_file())
        shapes = [replace(SMOLLM_135M, layers=layers) for layers in DEPTHS]
        depths = {shape.layers: summary([bench.upcycle(shape) for _ in range(2)]) for shape in shapes}

    checks = judge(contenders, depths)
    verdict = "\n".join(f"- {name}: {'met' if met else 'NOT met'}" for name, met in checks.items())
    text = f"{table(contenders, depths, written)}\n\n{verdict}"
    print(text)
    if mergekit is not None and options.smolmoe is None:
        about = machine.describe() | {"mergekit": MERGEKIT, "seed": SEED, "rounds": options.rounds}
        about |= {f"mergekit's {package}": version_in(mergekit, package) for package in ("torch", "transformers")}
        record = {"machine": about, "shape": asdict(SMOLLM_135M), "bytes_written": written}
        record |= {"contenders": contenders, "smolmoe_by_layers": depths, "checks": checks}
        machine.record("upcycle", record, text)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
