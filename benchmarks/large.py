"""Is a 7B model convertible and verifiable in 24 GB of memory?

    python benchmarks/large.py              # 12 GB of free disk, and some minutes

The dry run is of the real shape: a Llama-7B-shaped source of sparse files, real headers without data. The rest is in
proportion: a source of the same width with few layers is made for real, upcycled to 8 experts, and verified with no
decoder layer allowed to stay in memory. Two depths show what a layer adds, from which the full depth is extrapolated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import machine
from checkpoints import LLAMA_7B, Shape, write_random, write_sparse
from processes import MB, Run, in_own_process, run

EXPERTS, TOP_K, SEED = 8, 2, 0
LIMIT = 24_000_000_000
DEPTHS = (2, 3)

# One decoded token a prompt: with no layer kept, each of them reads the whole model anew.
VERIFY = """
import json, sys
from smolmoe import verify
result = verify(sys.argv[1], sys.argv[2], seed=int(sys.argv[3]), resident_bytes=0, new_tokens=1)
print(json.dumps(result.to_json()))
sys.exit(0 if result.passed else 1)
"""

Row = dict[str, Any]


def upcycle_command(source: Path, out: Path, *options: str) -> list[str | Path]:
    smolmoe = Path(sys.executable).parent / "smolmoe"
    request = ["--experts", str(EXPERTS), "--top-k", str(TOP_K), "--seed", str(SEED), "--verify", "none", "--json"]
    return [smolmoe, "upcycle", source, out, *request, *options]


def dry_run(work: Path) -> Row:
    """The plan of the full 7B conversion, from headers alone."""
    source, log = work / "dense-7b", work / "log.txt"
    apparent = write_sparse(source, LLAMA_7B)
    on_disk = sum(path.stat().st_blocks * 512 for path in source.iterdir())
    cost = run(upcycle_command(source, work / "out-7b", "--dry-run"), log)
    said = last_json(log.read_text())
    return {"source_bytes": apparent, "source_bytes_on_disk": on_disk, "run": asdict(cost), "result": said}


def proportionate(work: Path, shape: Shape) -> Row:
    """Make, upcycle and verify a model of the full width and `shape.layers` layers."""
    source, out, log = work / "dense", work / "moe", work / "log.txt"
    in_own_process(write_random, source, shape, SEED)
    converted = run(upcycle_command(source, out), log)
    written = sum(path.stat().st_size for path in out.iterdir())
    print(f"{shape.layers} layers: upcycled in {converted.seconds:.0f} s, verifying", file=sys.stderr)
    verified = run([sys.executable, "-c", VERIFY, source, out, str(SEED)], log)
    said = last_json(log.read_text())
    shutil.rmtree(source)
    shutil.rmtree(out)
    return {"bytes_written": written, "upcycle": asdict(converted), "verify": asdict(verified), "result": said}


def last_json(log: str) -> Row:
    """The JSON object that ends a log, whatever was printed before it."""
    decoder = json.JSONDecoder()
    starts = [0, *(index + 1 for index, character in enumerate(log) if character == "\n")]
    for start in starts:
        if log[start : start + 1] == "{":
            found, _ = decoder.raw_decode(log[start:])
            return dict(found)
    raise RuntimeError(f"no JSON in:\n{log[-2000:]}")


def extrapolate(rows: dict[int, Row], stage: str, layers: int) -> float:
    """Peak anonymous bytes at `layers` layers: the deeper measurement, plus what each further layer adds."""
    shallow, deep = DEPTHS
    low, high = (rows[depth][stage]["anonymous"] for depth in DEPTHS)
    return float(high + max(0, high - low) / (deep - shallow) * (layers - deep))


def table(dry: Row, rows: dict[int, Row]) -> str:
    lines = [
        "| Llama-7B width (D 4096, F 11008) to 8 experts | written GB | seconds | peak anonymous GB | peak mapped GB |",
        "|---|---|---|---|---|",
        line(f"dry run, {LLAMA_7B.layers} layers", Run(**dry["run"]), None),
    ]
    for layers, row in rows.items():
        lines.append(line(f"upcycle, {layers} layers", Run(**row["upcycle"]), row["bytes_written"]))
        lines.append(line(f"verify layer by layer, {layers} layers", Run(**row["verify"]), None))
    return "\n".join(lines)


def line(name: str, cost: Run, written: int | None) -> str:
    size = "" if written is None else f"{written / 1e9:.1f}"
    return f"| {name} | {size} | {cost.seconds:.1f} | {cost.anonymous / 1e9:.2f} | {cost.mapped / 1e9:.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the checkpoints (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="smolmoe-large-") as name:
        work = Path(name)
        dry = dry_run(work)
        rows = {layers: proportionate(work, replace(LLAMA_7B, layers=layers)) for layers in DEPTHS}

    peaks = {stage: extrapolate(rows, stage, LLAMA_7B.layers) for stage in ("upcycle", "verify")}
    checks = {
        f"{stage}, extrapolated to {LLAMA_7B.layers} layers: {peak / 1e9:.1f} GB": peak < LIMIT
        for stage, peak in peaks.items()
    }
    plan = dry["result"]
    text = "\n".join(
        [
            table(dry, rows),
            "",
            f"The dry run says: {plan['bytes'] / 1e9:.1f} GB to write, "
            f"{plan['estimate']['memory_bytes'] / MB:.0f} MB of memory for the conversion.",
            "",
            *(
                f"- {name}: {'fits' if fits else 'does NOT fit'} in {LIMIT / 1e9:.0f} GB"
                for name, fits in checks.items()
            ),
        ]
    )
    print(text)
    about = machine.describe() | {"seed": SEED}
    record = {"machine": about, "shape": asdict(LLAMA_7B), "dry_run": dry, "by_layers": rows, "checks": checks}
    machine.record("large", record, text)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
