"""The tables of docs/reference/gpu.md from what benchmarks/gpu.py wrote; without it each row is not measured yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpu_speed import NUMBERS, SHAPES, TOKENS
from machine import in_words
from step import KINDS

Rows = list[dict[str, Any]]
NOT_YET = "not measured yet"
LETTERS = {"eager": "e", "grouped_mm": "g", "batched_mm": "b", "sonicmoe": "s"}
DECODERS = ("dense", "smolmoe", *LETTERS)


def tables(found: Mapping[str, Any] | None) -> dict[str, str]:
    """Name of the marker, without `gpu-` -> Markdown."""
    parts = {name: part["rows"] for name, part in (found or {"parts": {}})["parts"].items()}

    def rows(name: str) -> Rows:
        return [row for row in parts.get(name, []) if "error" not in row]

    return {
        "machine": machine(found),
        "checks": checks(rows),
        "layer": layer(rows("layer")),
        "step": step(rows("step")),
        "decode": decode(rows("decode")),
        "memory": memory(rows("memory")),
        "compile": compiled(rows("compile")),
    }


def machine(found: Mapping[str, Any] | None) -> str:
    """On what, and what did not end well."""
    if found is None:
        return f"Machine: {NOT_YET}."
    parts = found["parts"]
    facts = next(iter(parts.get("machine", {}).get("rows", [])), {})
    lines = [f"Measured in {found['seconds']:.0f} s on: {in_words({**found['machine'], **facts}, 'packages')}."]
    for name, part in parts.items():
        errors = [f"{row['case']}: {row['error']}" for row in part["rows"] if "error" in row]
        if part["status"] != "done" or part["left_out"] or errors:
            said = "; ".join([part["status"], f"{part['left_out']} cases left out for lack of time", *errors[:3]])
            lines.append(f"- {name}: {said}")
    return "\n".join([lines[0], *([""] if len(lines) > 1 else []), *lines[1:]])


# -- checks ------------------------------------------------------------------------------------------------------------


def checks(rows: Callable[[str], Rows]) -> str:
    body = [
        [what, expected, measured(chosen)]
        for what, expected, chosen, measured in (
            ("fp32 against the CPU", "logits 1e-4, gradients 1e-3", _numbers(rows, "fp32"), _parity),
            ("the same with TF32 (negative control)", "logits above 1e-4", _numbers(rows, "fp32 with TF32"), _parity),
            ("bf16", "at most twice the CPU's error", _numbers(rows, "bf16"), _parity),
            ("fp32 weights, bf16 autocast", "at most twice bf16's error", _numbers(rows, "bf16 autocast"), _parity),
            ("conversions verified", "as on the CPU", rows("verify"), _passed),
            ("FSDP2 over NCCL, one process", "as the plain step", rows("fsdp"), _passed),
            ("`torch.compile(fullgraph=True)`", "no graph break, 5%", rows("compile"), _passed),
            ("`make test-gpu`", "no failure", rows("tests"), _tests),
        )
    ]
    return _table(["check", "expected", "measured"], body)


def _numbers(rows: Callable[[str], Rows], numbers: str) -> Rows:
    return [row for row in rows("parity") if row["numbers"] == numbers]


def _passed(rows: Rows) -> str:
    return f"{sum(row['passed'] for row in rows)} of {len(rows)} passed" if rows else NOT_YET


def _parity(rows: Rows) -> str:
    if not rows:
        return NOT_YET
    worst = {name: max(row[name] for row in rows) for name in ("logits", "gradients", "flips")}
    return (
        f"{_passed(rows)}; logits {worst['logits']:.1e}, gradients {worst['gradients']:.1e}, "
        f"other experts for {worst['flips']:.2%} of tokens"
    )


def _tests(rows: Rows) -> str:
    if not rows:
        return NOT_YET
    row = rows[-1]
    failed = row.get("failures", 0) + row.get("errors", 0)
    return f"{row.get('tests', 0)} tests, {failed} failed, {row.get('skipped', 0)} skipped"


# -- figures -----------------------------------------------------------------------------------------------------------


def layer(rows: Rows) -> str:
    """Our time over that of the fastest stock implementation."""
    by_case = {row["case"]: row for row in rows}
    body = []
    for size, experts, top_k, width in SHAPES:
        for numbers in NUMBERS if (size, experts, top_k, width) == SHAPES[0] else NUMBERS[:2]:
            for direction in ("forward", "both"):
                name = f"D{size}/E{experts}/K{top_k}/I{width}/{numbers}/{direction}/T"
                cells = [_ratio(by_case.get(f"{name}{tokens}")) for tokens in TOKENS] if rows else [NOT_YET]
                shape = f"{size}, {experts}, {top_k}, {width}"
                body.append([shape, numbers, "forward and backward" if direction == "both" else direction, *cells])
    columns = [f"T = {tokens}" for tokens in TOKENS] if rows else [f"T = {TOKENS[0]} to {TOKENS[-1]}"]
    text = _table(["D, E, K, I", "", "", *columns], body)
    if not rows:
        return text
    known = [row for row in rows if row["ratio"] is not None]
    best = sum(row["ratio"] <= 1.05 for row in known)
    fastest = sum(row["chosen"] == row["fastest"] for row in known)
    return f"{text}\n\n" + (
        f"The choice was the fastest stock implementation in {fastest} of {len(known)} cases; ours was within 5% of "
        f"the fastest in {best}; median ratio {statistics.median(row['ratio'] for row in known):.2f}, "
        f"worst {max(row['ratio'] for row in known):.2f}."
    )


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None or row["ratio"] is None:
        return NOT_YET
    return f"{row['ratio']:.2f} {LETTERS[row['fastest']]}"


def step(rows: Rows) -> str:
    body = []
    for kind in KINDS:
        chosen = [row for row in rows if row["kind"] == kind]
        if not chosen:
            body.append([kind, *[NOT_YET] * 3])
            continue
        rate = statistics.median(row["tokens_per_second"] for row in chosen)
        low, high = (bound(row["seconds"][key] for row in chosen) for bound, key in ((min, "low"), (max, "high")))
        peak = max(row["peak_bytes"] for row in chosen)
        body.append([kind, f"{rate:,.0f}", f"{1e3 * low:.1f} to {1e3 * high:.1f} ms", f"{peak / 1e9:.2f} GB"])
    return _table(["", "tokens/s", "step (quartiles)", "peak memory"], body)


def decode(rows: Rows) -> str:
    by_batch = {row["batch"]: row for row in rows}
    body = []
    for batch in (1, 16, 64):
        rates = by_batch.get(batch, {}).get("tokens_per_second", {})
        body.append([batch, *(f"{rates[name]:,.0f}" if name in rates else _missing(rows) for name in DECODERS)])
    return _table(["prompts", *DECODERS], body)


def memory(rows: Rows) -> str:
    names = (
        "all experts on the device",
        "the default cache",
        "a cache of 25% of the experts",
        "a cache of 50% of the experts",
    )
    by_case = {row["case"]: row for row in rows}
    body = []
    for name in names:
        row = by_case.get(name)
        cells = [NOT_YET] * 3
        if row is not None:
            moved = row["moved_bytes"] / row["generating"] / 1e9
            cells = [f"{row['peak_bytes'] / 1e9:.2f} GB", f"{row['tokens_per_second']:,.1f}", f"{moved:.2f} GB/s"]
        body.append([name, *cells])
    return _table(["", "peak memory", "tokens/s", "copied to the GPU"], body)


def compiled(rows: Rows) -> str:
    names = [f"layer, {numbers}, T{tokens}" for numbers in ("bf16", "autocast") for tokens in (16, 512, 4096)]
    names += ["model, forward, mixtral", "model, forward, glm4_moe", "model, step, mixtral"]
    by_case = {row["case"]: row for row in rows}
    body = []
    for name in names:
        row = by_case.get(name)
        cells = [NOT_YET] * 4
        if row is not None:
            times = [f"{1e3 * row['seconds'][kind]['median']:.2f} ms" for kind in ("eager", "compiled")]
            cells = [*times, f"{row['compiling']:.1f} s", f"{row['difference']:.1e}"]
        body.append([name, *cells])
    return _table(["", "eager", "compiled", "compiling", "largest difference"], body)


def _missing(rows: Rows) -> str:
    """Of a figure of a part that ran: an implementation that is not installed."""
    return "" if rows else NOT_YET


def _table(header: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, cells))} |" for cells in body)])
