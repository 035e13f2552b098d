"""From the records of the stages to what people read: the boundary report, the curves, a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smolmoe.core import units
from smolmoe.core.statistics import Interval
from smolmoe.reports.boundary import (
    DENSE,
    DENSE_TRAINED,
    MOE_TRAINED,
    BoundaryReport,
    Curve,
    HeldOutLoss,
    boundary_text,
)

TRAINED = (DENSE, MOE_TRAINED, DENSE_TRAINED)
BULK = ("points", "held_out")  # kept in the stage's own record; the curves in metrics.jsonl as well

Record = dict[str, Any]


def boundary(records: dict[str, Record]) -> BoundaryReport:
    """The held-out losses of the four checkpoints (three where no dense model was trained on)."""
    from smolmoe.evaluation.held_out import DocumentLosses, paired_difference

    losses = {
        name: DocumentLosses.from_json(record["held_out"]) for name, record in records.items() if "held_out" in record
    }
    held = {name: HeldOutLoss(found.loss, found.by_domain) for name, found in losses.items()}
    difference = None
    if "dense-trained" in losses:
        difference = Interval(*paired_difference(losses["moe-trained"], losses["dense-trained"]))
    return BoundaryReport(
        documents=len(losses["dense"].tokens),
        tokens=sum(losses["dense"].tokens),
        dense=held["dense"],
        moe=held["moe"],
        moe_trained=held["moe-trained"],
        dense_continued=held.get("dense-trained"),
        difference=difference,
    )


def points(name: str, records: dict[str, Record]) -> list[Record]:
    """Every loss measured while a model was trained, with the training tokens seen until then, in order.

    The last held-out one is that of the checkpoint as written; an MoE's first is that of the conversion.
    """
    record = records[name]
    before, each = (record[key] * record["block_tokens"] for key in ("start", "blocks"))
    steps = record["steps"]
    ends = [{"kind": "held_out", "step": steps, "loss": record["loss"]}]
    starts = []
    if name == "moe-trained":
        starts = [{"kind": "held_out", "step": 0, "loss": records["moe"]["loss"]}]
    found = [*starts, *record["points"], *ends]
    return [{**point, "tokens": before + each * point["step"] // steps} for point in found]


def metrics(records: dict[str, Record]) -> Iterator[Record]:
    """The rows of `metrics.jsonl`."""
    for name in TRAINED:
        if name in records:
            yield from ({"stage": name, **point} for point in points(name, records))


def curve(name: str, records: dict[str, Record]) -> Curve:
    """A model's curve, to be drawn."""
    found = points(name, records)
    by_kind = {
        kind: [(point["tokens"], point["loss"]) for point in found if point["kind"] == kind]
        for kind in ("train", "held_out")
    }
    return Curve(name, by_kind["train"], by_kind["held_out"])


def without_bulk(record: Record) -> Record:
    """A stage's record as `report.json` has it."""
    return {key: value for key, value in record.items() if key not in BULK}


def text(out: Path, found: BoundaryReport, report: Record) -> str:
    """The findings to read in a terminal."""
    stages = report["stages"]
    parameters = stages["upcycle"]["parameters"]
    verification = stages["upcycle"]["verification"]
    verdict = "verified" if verification["passed"] else "NOT verified"
    lines = [
        f"{stages['upcycle']['architecture']}, {report['settings']['experts']} experts, top-"
        f"{report['settings']['top_k']}: {verdict}, max |Δlogit| {verification['logits']['max_abs']:.1e}",
        f"parameters {parameters['dense']['total']:,} -> {parameters['moe']['total']:,}, "
        f"{parameters['moe']['active']:,} active",
        "",
        boundary_text(found),
        "",
        load_text(stages["moe-trained"]["load"]),
    ]
    for domain, sample in stages["samples"].items():
        if domain in found.dense.by_domain:
            lines += ["", f"--- {domain}: {sample['prompt'].strip()}"]
            lines += [f"[{name}] {sample[name].strip()}" for name in ("dense", "moe-trained")]
    lines += [
        "",
        f"{units.duration(report['wall_seconds'])}. {out}: boundary.png, report.json, metrics.jsonl, "
        f"{', '.join(TRAINED)}, moe",
    ]
    return "\n".join(lines)


def load_text(load: dict[str, list[list[float]]]) -> str:
    """How evenly the experts are used, layer by layer, and how far the domains differ."""
    experts = len(load["all"][0])
    lines = [f"expert load after training (balanced: {1 / experts:.1%} each), lowest - highest in each layer"]
    for domain in sorted(load):
        spans = (f"{min(layer):.1%} - {max(layer):.1%}" for layer in load[domain])
        lines.append(f"{domain:<6} " + "   ".join(spans))
    return "\n".join(lines)
