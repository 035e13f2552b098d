"""All that only a GPU can show, in one call of at most nine minutes that writes one JSON file.

    python benchmarks/gpu.py [--minutes 9] [--only layer step] -o benchmarks/results/gpu.json
    python benchmarks/gpu.py table
    python benchmarks/gpu.py --device cpu --tiny -o /tmp/gpu.json      # the same code on a CPU, in seconds

The parts run one after the other, each as a process with its share of the time; what a part leaves goes to the later
ones. The file is written after each part. A part that fails or exceeds its time is recorded with the last lines that it
printed, keeps the rows that it had measured, and the next one begins. Parts of an existing file that are not run again
are kept, if they are of the same commit and GPU.

- machine: GPU, driver, CUDA, versions
- parity: logits, gradients and chosen experts in fp32 and bf16 against the CPU's fp32; TF32 as the negative control
- verify: an upcycled checkpoint verified on the GPU and on the CPU
- fsdp: one process over NCCL: a sharded step against a plain one, and a step after loading the gathered state
- compile: `torch.compile` of the layer and of models without graph breaks: differences and time
- layer: the grid of tokens, experts and number types, forward and backward: ours against every stock implementation
- step: tokens/s and peak memory of a training step against the plain Trainer and dense models
- decode: tokens/s of generation for 1 and 16 prompts
- memory: generation with experts in CPU memory
- tests: `make test-gpu`

`table` writes the tables of docs/reference/gpu.md from benchmarks/results/gpu.json (or --from FILE); without the file
each row says that it is not measured yet.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_setting import Setting
from machine import HERE, describe, put_between

RESULTS = HERE / "results" / "gpu.json"
PAGE = HERE.parent / "docs" / "reference" / "gpu.md"
# Part -> its share of the time. The most important come first: whatever stops the run, they are measured.
SHARES = {
    "machine": 2,
    "parity": 6,
    "verify": 6,
    "fsdp": 4,
    "layer": 22,
    "step": 14,
    "decode": 10,
    "memory": 7,
    "compile": 16,
    "tests": 13,
}
LAST_LINES = 25
RESERVE = 5.0  # seconds, for killing and writing
STARTING = 90.0  # seconds at most
SOFT = 0.85  # of its share a part plans for
IMPORTED = [
    "gpu_checks",
    "gpu_speed",
    "transformers.models.glm4_moe.modeling_glm4_moe",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "transformers.generation.utils",
    "smolmoe.training.trainer",
    "smolmoe.inference.offload",
    "smolmoe.surgery.run",
    "smolmoe.verification.verify",
]
Work = Callable[[str, Setting], Iterator[dict[str, Any]]]  # of a part's name and setting: its rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="JSON file")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--device", default="auto", help="auto (a GPU, or an error), cuda, cuda:N or cpu")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), metavar="PART")
    parser.add_argument("--tiny", action="store_true", help="small models and few cases, to try the code")
    parser.add_argument("--from", dest="source", type=Path, default=RESULTS, help="JSON file of `table`")
    arguments = parser.parse_args()
    if arguments.action == "table":
        write_tables(arguments.source)
        return
    prepare()
    found = measure(arguments)
    failed = [name for name, part in found["parts"].items() if part["status"] != "done"]
    print(f"{arguments.out}: {len(found['parts'])} parts, not done: {', '.join(failed) or 'none'}")


def prepare() -> None:
    """Let parts be forked from a process that has imported this checkout and the libraries, which takes seconds."""
    source = str(HERE.parent / "src")
    sys.path.insert(0, source)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, str(HERE), os.environ.get("PYTHONPATH", "")]))
    # Else a library that only asks whether there is a GPU makes it unusable in the forked processes.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    multiprocessing.set_forkserver_preload(IMPORTED)


def write_tables(source: Path) -> None:
    from gpu_table import tables

    found = json.loads(source.read_text()) if source.is_file() else None
    if found is not None and found["tiny"]:
        raise SystemExit(f"{source} is of --tiny: nothing that a page should show")
    for name, text in tables(found).items():
        put_between(PAGE, f"gpu-{name}", text)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the parts, and write the file after each."""
    begun = time.monotonic()
    device = pick(arguments.device)
    found = begin(arguments, device)
    end = begun + 60 * arguments.minutes - RESERVE
    method = "forkserver"
    asked = [name for name in SHARES if name in ("machine", *arguments.only)]
    for number, name in enumerate(asked):
        left = max(0.0, end - time.monotonic())
        share = left * SHARES[name] / sum(SHARES[later] for later in asked[number:])
        if name == "machine":  # waits for the libraries to be imported
            share = max(share, min(left, STARTING))
        part = one(name, share, device, arguments.tiny, method)
        if name == "machine" and part["status"] == "failed":  # the GPU cannot be used in a forked process
            method = "spawn"
            part = one(name, share, device, arguments.tiny, method)
        found["parts"][name] = part
        found["seconds"] = round(time.monotonic() - begun, 1)
        save(arguments.out, found)
        print(f"{name}: {part['status']}, {len(part['rows'])} rows, {part['seconds']} s", file=sys.stderr, flush=True)
    return found


def pick(asked: str) -> str:
    """The device; in a process that is gone afterwards, because a GPU's memory belongs to the parts."""
    if asked != "auto":
        return asked
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        raise SystemExit("no GPU: torch sees none. Try the code with --device cpu --tiny.")
    return "cuda"


def begin(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """The file as it is before the first part: of a former run that measured the same, the parts."""
    fresh = {"machine": describe(), "device": device, "tiny": arguments.tiny, "minutes": arguments.minutes, "parts": {}}
    if not arguments.out.is_file():
        return fresh
    before = json.loads(arguments.out.read_text())
    same = all(before[key] == fresh[key] for key in ("machine", "device", "tiny"))
    return {**fresh, "parts": before["parts"]} if same else fresh


def one(
    name: str, seconds: float, device: str, tiny: bool, method: str = "forkserver", work: Work | None = None
) -> dict[str, Any]:
    """Run a part as a process: its status, rows, seconds, and the last lines if it did not end well.

    Args:
        method: forkserver, from a process that has imported the libraries; or spawn.
        work: what the process does, by default `run_part`.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        begun = time.monotonic()
        asked = (work or run_part, name, rows, log, device, tiny, SOFT * seconds)
        status = run(asked, seconds, method)
        measured, left_out = [], 0
        for row in whole_rows(rows):
            left_out += row.pop("left_out", 0)
            measured += [row] if row else []
        part = {"status": status, "seconds": round(time.monotonic() - begun, 1), "left_out": left_out, "rows": measured}
        if status != "done":
            lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
            part["log"] = [line[:500] for line in lines[-LAST_LINES:]]
    return part


def whole_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Without the row that a killed process was writing."""
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            return
        yield row


def run(asked: tuple[Any, ...], seconds: float, method: str) -> str:
    """done, failed or timed out. Whatever the process started is ended with it."""
    process: Any = multiprocessing.get_context(method).Process(target=in_process, args=asked)
    process.start()
    process.join(seconds)
    status = "timed out" if process.exitcode is None else "failed" if process.exitcode else "done"
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)  # its group, which is its own
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join()
    return status


def in_process(work: Work, name: str, rows: Path, log: Path, device: str, tiny: bool, seconds: float) -> None:
    """A part's process: what it prints goes to the log, each row to its file when it is there."""
    os.setsid()
    with log.open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    faulthandler.enable()
    os.environ |= visible(device)
    setting = Setting(device.partition(":")[0], tiny, time.monotonic() + seconds)
    with rows.open("w") as file:
        for row in work(name, setting):
            file.write(json.dumps(row) + "\n")
            file.flush()
        file.write(json.dumps({"left_out": setting.left_out}) + "\n")


def visible(device: str) -> dict[str, str]:
    """One GPU: the plain Trainer would put copies of the model on all."""
    if not device.startswith("cuda"):
        return {}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    number = device.partition(":")[2] or "0"
    return {"CUDA_VISIBLE_DEVICES": listed.split(",")[int(number)] if listed else number}


def run_part(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    import gpu_checks
    import gpu_speed

    setting.use()
    module = gpu_checks if hasattr(gpu_checks, f"part_{name}") else gpu_speed
    yield from getattr(module, f"part_{name}")(setting)


def save(out: Path, found: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(out)


if __name__ == "__main__":
    main()
