"""inspect: the structure of a dense model, and its possible targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import convert

if TYPE_CHECKING:
    from smolmoe.surgery.inspection import Inspection


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
    print()
    table(
        "Possible targets",
        ("target", "routed only", "with a shared expert", "layers left dense", "runs in"),
        [
            (t.target, yes[t.routed], yes[t.shared], t.dense_layers, "; ".join(f"{e} {n}" for e, n in t.runs.items()))
            for t in report.targets
        ],
    )
    print(f"exact: {EXACT_IN}.")
    for t in report.targets:
        if t.why_not:
            print(f"{t.target}: {'; '.join(t.why_not)}. Nearest: {t.nearest}.")


COMMAND = Command(convert.inspect, lambda report, given: _show_inspection(report))
