"""What a pipeline found, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolmoe.core import units
from smolmoe.pipeline.forecast import StageForecast
from smolmoe.pipeline.stage import Row
from smolmoe.pipeline.stages import STAGES

Records = Mapping[str, Mapping[str, Any]]


def _row(out: Path, name: str, record: Mapping[str, Any]) -> Row:
    return STAGES[record["asked"]["kind"]].row(record["result"], out / name)


def table(out: Path, records: Records) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a stage each, with held-out losses (nats per token) over all and by domain."""
    found = {name: _row(out, name, record) for name, record in records.items()}
    domains = sorted({domain for row in found.values() for domain in row.by_domain})
    domains = domains if len(domains) > 1 else []
    rows = []
    for name, row in found.items():
        losses = [row.loss, *map(row.by_domain.get, domains)]
        cells = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        took = units.duration(records[name]["wall_seconds"]) + ("" if records[name]["done"] else " (done before)")
        rows.append([name, records[name]["asked"]["kind"], *cells, row.found, took])
    return ["stage", "kind", "held-out loss", *domains, "result", "time"], rows


def findings(out: Path, records: Records) -> str:
    """What the stages say in more than a row."""
    texts = (_row(out, name, record).text for name, record in records.items())
    return "\n\n".join(text for text in texts if text)


def forecast_table(stages: list[StageForecast]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a stage each, with what it will cost."""
    rows = []
    for stage in stages:
        costs, spent = stage.costs, [""] * 5
        if costs is not None and costs.steps > 0:
            sizes = [units.tokens(costs.tokens), units.flops(costs.flops), units.size(costs.memory_bytes)]
            spent = [f"{costs.steps:,}", *sizes, units.duration(costs.seconds)]
        rows.append([stage.name, stage.kind, stage.origin, units.model_size(stage.total, stage.active), *spent])
    return ["stage", "kind", "from", "parameters", "steps", "tokens", "FLOPs", "memory", "time"], rows
