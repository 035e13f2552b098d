"""probe: what each expert specialises in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.core.statistics import signed
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.results.probe import Baseline, Losses, ProbeResult


def show_probe(result: ProbeResult, out: Path) -> None:
    """The text, the layers, the matrix of the clearest layer, accuracy, losses, and problems."""
    facts = result.model
    print(f"{facts.folder}: {facts.class_name}, {facts.experts} experts, top-{facts.top_k}, {len(facts.layers)} layers")
    read = (
        f"{name} {units.tokens(result.tokens[name])} tokens in {result.documents[name]} documents"
        for name in result.domains
    )
    print_rows([("read", ", ".join(read)), ("device", _device(result.data)), ("page", out / "index.html")])
    _show_layers(result)
    _show_matrix(result)
    _show_accuracy(result)
    if result.losses is not None:
        _show_losses(result.losses, result.domains)


def _device(data: dict[str, Any]) -> str:
    name = data.get("device_name")
    return str(data["device"]) + (f" ({name})" if name else "")


def _show_layers(result: ProbeResult) -> None:
    accuracy = result.accuracy
    columns = [
        "layer",
        "evenness",
        "MaxVio",
        "active",
        "separation",
        "information",
        "contrast",
        "of expert",
        "accuracy",
    ]
    columns += ["probe", *(["dense probe"] if accuracy.dense_linear_probe_macro else [])]
    columns += ["settled"] if result.saturation else []
    rows = []
    for at, layer in enumerate(result.layers):
        row = [
            layer.layer,
            f"{layer.entropy:.3f}",
            f"{layer.max_vio:.2f}",
            f"{layer.active_percent:.0f}%",
            _over_chance(layer.separation, layer.separation_baseline, ".3f"),
            _over_chance(layer.mutual_information, layer.mutual_information_baseline, ".3f"),
            _over_chance(layer.contrast, layer.contrast_baseline, ".1f"),
            f"{layer.contrast_expert}: {'/'.join(layer.contrast_domains)}",
            f"{accuracy.macro[at]:.1%}",
            f"{accuracy.linear_probe_macro[at]:.1%}",
        ]
        row += [f"{accuracy.dense_linear_probe_macro[at]:.1%}"] if accuracy.dense_linear_probe_macro else []
        row += [f"{result.saturation[at]:.1%}"] if result.saturation else []
        rows.append(row)
    table("Layers (in brackets: 95th percentile with the domains shuffled)", columns, rows)


def _over_chance(value: float, baseline: Baseline, form: str) -> str:
    return f"{value:{form}} ({baseline.p95:{form}})"


def _show_matrix(result: ProbeResult) -> None:
    at = max(range(len(result.layers)), key=lambda index: result.layers[index].separation)
    names = result.model.names or [None] * result.model.experts
    most_used = sorted(range(len(names)), key=lambda expert: -result.load[at][expert])[:16]
    shown = sorted(most_used)
    columns = ["domain", *(f"{expert} {names[expert] or ''}".strip() for expert in shown)]
    rows = [
        [domain, *(f"{result.matrix[at][index][expert]:.0%}" for expert in shown)]
        for index, domain in enumerate(result.domains)
    ]
    title = f"Share of each domain's choices by expert, layer {result.layers[at].layer} (the clearest)"
    table(title if len(shown) == len(names) else f"{title}, the {len(shown)} most used", columns, rows)


def _show_accuracy(result: ProbeResult) -> None:
    span = result.last_third
    columns = ["domain", "documents", "top-1 per token", "majority per document", "linear probe"]
    columns += ["dense linear probe"] if span.dense_ceiling_per_domain else []
    rows = []
    for at, domain in enumerate(result.domains):
        row = [
            domain,
            result.accuracy.documents[domain],
            f"{span.per_domain[at]:.1%}",
            f"{span.document_majority[at]:.1%}",
            f"{span.ceiling_per_domain[at]:.1%}",
        ]
        rows.append(row + ([f"{span.dense_ceiling_per_domain[at]:.1%}"] if span.dense_ceiling_per_domain else []))
    majority = sum(span.document_majority) / len(span.document_majority)
    mean = ["mean", sum(result.accuracy.documents.values()), f"{span.accuracy:.1%}", f"{majority:.1%}"]
    mean += [f"{span.ceiling:.1%}", *([f"{span.dense_ceiling:.1%}"] if span.dense_ceiling is not None else [])]
    layers = ", ".join(map(str, span.layers))
    table(f"Domain accuracy (held-out), last third of the layers ({layers})", columns, [*rows, mean])


def _show_losses(losses: Losses, domains: list[str]) -> None:
    own = [at for at, label in enumerate(losses.labels) if at in losses.own]
    shown = own or list(range(len(losses.labels)))
    for title, values in (("with only these experts", losses.forced), ("without these experts", losses.knocked_out)):
        columns = ["domain", "all experts", *(["dense"] if losses.dense else []), *(losses.labels[at] for at in shown)]
        rows = []
        for index, domain in enumerate(domains):
            base = losses.base[domain]
            row = [domain, f"{base:.4f}", *([f"{losses.dense[domain]:.4f}"] if losses.dense else [])]
            rows.append(row + [_change(values[index][at], base) for at in shown])
        table(f"Held-out loss (nats per token), and its change {title}", columns, rows)
    for flag in losses.flags:
        print(f"  ! {flag}")
    for sentence in losses.summary:
        print(f"  {sentence}")


def _change(value: float | None, base: float) -> str:
    return "-" if value is None else signed(value - base)


COMMAND = Command(
    understand.probe,
    lambda result, given: show_probe(result, given["out"]),
    as_options=("data", "out"),
    names={"runs": ("--run",)},
)
