"""doctor: routers and experts that would waste a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.calling import as_typed
from smolmoe.cli.command import Command
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.verification.doctor import Diagnosis


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Findings, the worst first, each with its meaning and remedy."""
    order = {"error": 0, "warning": 1, "info": 2}
    for finding in sorted(diagnosis.findings, key=lambda finding: order[finding.severity]):
        layers = f" (layers {_ranges(finding.layers)})" if finding.layers else ""
        print(f"{finding.severity}: {finding.message}{layers}  [{finding.code}]")
        print(f"    means: {finding.meaning}")
        print(f"    do:    {as_typed(finding.remedy)}")
    counts = {severity: sum(f.severity == severity for f in diagnosis.findings) for severity in order}
    print(f"{counts['error']} error(s), {counts['warning']} warning(s), {counts['info']} for information.")


def _ranges(layers: tuple[int, ...]) -> str:
    """(0, 1, 2, 5) as "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


COMMAND = Command(
    understand.doctor,
    lambda diagnosis, given: show_diagnosis(diagnosis),
    doing="Examining the MoE",
    exit_code=lambda diagnosis, given: 1 if diagnosis.worst == "error" else 0,
)
