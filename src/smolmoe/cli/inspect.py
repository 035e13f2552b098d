"""inspect: the structure of a dense model, and its possible targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import convert

if TYPE_CHECKING:
    from smolmoe.surgery.inspection import Inspection, TargetReport


def _show_inspection(report: Inspection) -> None:
    from smolmoe.surgery.inspection import EXACT_IN

    p = report.parameters
    sizes = report.sizes
    print(f"{report.source}: {report.architecture}")
    print_rows(
        [
            ("family", report.family),
            ("sizes", ", ".join(f"{name} {value}" for name, value in sizes.items())),
            ("FFN", report.ffn + (", with biases" if report.mlp_bias else ", no biases")),
            ("attention biases", report.attention_bias),
            ("q/k norm", report.qk_norm),
            ("sliding window", report.sliding_window),
            ("rope", ", ".join(f"{k} {v}" for k, v in report.rope.items()) or "none"),
            ("embeddings", "tied to the output head" if report.tied else "not tied"),
            ("files", f"{', '.join(report.dtypes)}, {units.size(report.nbytes)}"),
            ("parameters", f"{p.total:,} total and active; {p.total - p.embedding:,} without embeddings"),
            *(("warning", warning) for warning in report.warnings),
        ]
    )
    yes = {True: "exact", False: "-"}
    able = [target for target in report.targets if target.fits]
    print()
    table(
        "Possible targets",
        ("target", "routed only", "with a shared expert", "layers left dense", "runs in"),
        [
            (target.target, yes[target.routed], yes[target.shared], target.dense_layers, _engines(target.runs))
            for target in able
        ],
    )
    print(f"exact: {EXACT_IN}.")
    for target in able:
        if target.why_not:
            print(f"{target.target}: {'; '.join(target.why_not)}. Nearest: {target.nearest}.")
        _show_missing_engines(target)
    _show_unfit([target for target in report.targets if not target.fits])


def _engines(runs: dict[str, list[str]]) -> str:
    return ", ".join(engine for engine, why in runs.items() if not why)


def _show_missing_engines(target: TargetReport) -> None:
    from smolmoe.families.engines import by_reason

    for reason, engines in by_reason(target.runs).items():
        print(f"{target.target} not in {', '.join(engines)}: {reason}.")


def _show_unfit(targets: list[TargetReport]) -> None:
    by_reason: dict[str, list[str]] = {}
    for target in targets:
        by_reason.setdefault("; ".join(target.why_not), []).append(target.target)
    for reason, names in by_reason.items():
        print(f"not {', '.join(names)}: {reason}.")


COMMAND = Command(convert.inspect, lambda report, given: _show_inspection(report), doing="Reading the headers")
