"""The sections of the report: what each shows where there is something, and which command makes it where not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from smolmoe.core import units
from smolmoe.hub.card import engines, sources
from smolmoe.hub.model_facts import ModelFacts, without_places
from smolmoe.reports.bench_view import bench_html, bench_label
from smolmoe.reports.charts import Chart, show, table
from smolmoe.reports.names import Looks
from smolmoe.reports.overview import Boundary, Overview, Probe, Training
from smolmoe.reports.overview_charts import (
    balance_chart,
    boundary_chart,
    by_domain_rows,
    claim_chart,
    final_chart,
    final_rows,
    layers_chart,
    routing_chart,
    training_chart,
)
from smolmoe.reports.overview_results import (
    comparison_chart,
    comparison_rows,
    needs_chart,
    sweep_chart,
    sweep_laws,
    sweep_rows,
)
from smolmoe.reports.page_summary import flags, headlines, loss_table
from smolmoe.reports.page_tokens import token_view

SHOWN = 4  # of a kind, before the others are folded away


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name, title: its id and heading.
        html: what it shows; empty where it is missing.
        command: what would make it.
    """

    name: str
    title: str
    html: str
    command: str


def sections(found: Overview) -> list[Section]:
    """Every section in the order of the page, the missing ones too."""
    parts: list[tuple[str, str, Callable[[Overview], str], str]] = [
        ("claim", "Claim and verification", _claim, "smolmoe upcycle DENSE OUT --experts 8 --top-k 2"),
        ("boundary", "Across the conversion", _boundaries, "smolmoe run fair-baselines"),
        ("losses", "Losses beside the dense baselines", _losses, "smolmoe train RECIPE"),
        ("training", "Training", _training, "smolmoe train RECIPE"),
        ("balance", "Balance and active experts", _balance, "smolmoe train RECIPE --set model.path=MOE"),
        ("routing", "Routing, before and after", _routing, "smolmoe probe MODEL --data TAGGED.jsonl --out DIR"),
        ("layers", "Specialisation by layer", _layers, "smolmoe probe MODEL --data TAGGED.jsonl --out DIR"),
        ("tokens", "Token by token", _tokens, "smolmoe probe MODEL --data TAGGED.jsonl --out DIR"),
        ("comparison", "Comparison", _comparison, "smolmoe compare dense=DENSE moe=MOE --data DATA --out DIR"),
        ("sweep", "What more data buys", _sweep, "smolmoe sweep RECIPE --tokens 0.5M,1M,2M,4M,8M"),
        ("speed", "Speed", _speed, "smolmoe bench MODEL --against DENSE --out bench.json"),
        ("provenance", "Provenance", _provenance, "smolmoe upcycle DENSE OUT"),
    ]
    return [Section(name, title, make(found), _named(command, found)) for name, title, make, command in parts]


def _named(command: str, found: Overview) -> str:
    """The command with the folders that are known here."""
    moe = next((str(model.folder) for _, model in found.moes), None)
    dense = next((str(other.folder) for other in found.models_it_was_made_of), None)
    known = {"MODEL": moe, "MOE": moe, "DENSE": dense}
    quoted = {word: shlex.quote(folder) for word, folder in known.items() if folder}
    return re.sub(r"\b[A-Z]+\b", lambda word: quoted.get(word[0], word[0]), command)


def _charts(charts: Sequence[Chart | None]) -> str:
    return "\n".join(chart.html() for chart in charts if chart is not None)


def _folded(items: Sequence[tuple[str, str]]) -> str:
    """The first open, the others under their labels."""
    if not items:
        return ""
    others = "".join(
        f"<details class='more'><summary>{escape(label)}</summary>{html}</details>" for label, html in items[1:]
    )
    return items[0][1] + others


# -- models ----------------------------------------------------------------------------------------------------------


def _claim(found: Overview) -> str:
    claimed = [(label, m) for label, m in found.models if (m.provenance.get("claim") or {}).get("kind") and m.experts]
    if not claimed:
        return ""
    cards = "".join(_claim_card(label, model) for label, model in claimed[:SHOWN])
    rest = "".join(_claim_card(label, model) for label, model in claimed[SHOWN:])
    more = f"<details class='more'><summary>{len(claimed) - SHOWN} more</summary>{rest}</details>" if rest else ""
    return f'<div class="cards">{cards}</div>{more}{_charts([claim_chart(claimed[:6], found.looks)])}'


def _claim_card(label: str, model: ModelFacts) -> str:
    claim = (model.provenance.get("experts") or {}).get("claim") or model.provenance["claim"]
    verification = model.provenance.get("verification") or (model.provenance.get("experts") or {}).get("measured")
    if not verification:
        tone, said = "open", "not verified"
    else:
        checks = verification.get("checks") or ()
        tone = "good" if verification.get("passed") else "bad"
        held = sum(bool(check["passed"]) for check in checks)
        said = f"{'holds' if tone == 'good' else 'does not hold'}: {held} of {len(checks)} checks"
    rows = "".join(
        f'<li class="{"good" if check["passed"] else "bad"}"><span>{"✓" if check["passed"] else "✗"}</span> '
        f"{escape(check['meaning'])} <b>{float(check['measured']):.2g}</b> of {float(check['limit']):.2g}</li>"
        for check in (verification or {}).get("checks") or ()
    )
    checks_html = f"<details><summary>The checks</summary><ul class='checks'>{rows}</ul></details>" if rows else ""
    return (
        f'<article class="card"><h3>{escape(label)}</h3><p><span class="badge">{escape(str(claim.get("kind")))}</span> '
        f'<span class="badge {tone}">{escape(said)}</span></p><p>{escape(str(claim.get("reason") or ""))}</p>'
        f"{_words(model)}{checks_html}</article>"
    )


def _words(model: ModelFacts) -> str:
    known = model.parameters
    parts = [f"{known.get('total') or model.total:,} parameters"]
    parts += [f"{model.active:,} active"] if model.active else []
    parts += [f"{units.size(model.nbytes)}, {' and '.join(model.dtypes)}"]
    return f'<p class="hint">{escape(", ".join(parts))}. {escape(model.architecture)}.</p>'


# -- conversions and trainings ---------------------------------------------------------------------------------------


def _boundaries(found: Overview) -> str:
    return _folded(
        [(b.label, _boundary(b, f"boundary-{place}", found.looks)) for place, b in enumerate(found.boundaries)]
    )


def _boundary(boundary: Boundary, name: str, looks: Looks) -> str:
    rows = [
        [
            label,
            row.get("final"),
            _signed(row.get("jump")),
            _interval(row.get("difference")),
            None if row.get("tokens") is None else units.tokens(row["tokens"]),
            None if row.get("flops") is None else units.flops(row["flops"]),
        ]
        for label, row in boundary.rows.items()
    ]
    head = [
        "model",
        "final loss",
        "jump at the conversion",
        f"less {boundary.reference or 'the reference'}",
        "tokens",
        "FLOPs",
    ]
    kept = [at for at in range(len(head)) if at == 0 or any(row[at] not in (None, "–") for row in rows)]
    return boundary_chart(boundary, name, looks).html() + table(
        [head[at] for at in kept], [[row[at] for at in kept] for row in rows], caption="Nats a token, held out"
    )


def _signed(value: Any) -> str:
    return "–" if value is None else f"{value:+.1e}" if value else "0"


def _interval(found: Mapping[str, float] | None) -> str:
    return "–" if not found else f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"


def _losses(found: Overview) -> str:
    done = [[run for run in group if run.summary.get("held_out")] for group in found.groups]
    charts = [final_chart(group, f"final-losses-{place}", found.looks) for place, group in enumerate(done)]
    alone = [group[0] for group in done if len(group) == 1]
    parts = [_charts(charts)]
    if alone:
        head, rows = final_rows(alone)
        parts.append(_why_alone(found, alone) + table(head, rows, caption="Runs that stand by themselves"))
    for boundary in found.boundaries:
        if boundary.by_domain:
            head, rows = by_domain_rows(boundary)
            parts.append(table(head, rows, caption=f"{boundary.label}: held-out loss, nats a token"))
    return "\n".join(part for part in parts if part)


def _why_alone(found: Overview, alone: Sequence[Training]) -> str:
    """Why these runs' losses are not set beside others."""
    others = [run for run in found.trainings if run.summary.get("held_out")]
    if len(others) < 2:
        return ""
    said = []
    for run in alone:
        reasons = {found.kin.why_apart(run.folder, other.folder) for other in others if other is not run}
        said.append(f"{run.label}: {' or '.join(sorted(filter(None, reasons)))}")
    words = "Not compared with the other runs, whose figures would say nothing about them"
    return f'<p class="note">{escape(words)}. {escape("; ".join(said))}.</p>'


def _by_group(found: Overview, chart: Callable[[Sequence[Training], str, Looks], Chart | None], name: str) -> str:
    """A figure for each set of runs that belong together; the first ones open."""
    charts = [chart(group, f"{name}-{place}", found.looks) for place, group in enumerate(found.groups)]
    parts = [(", ".join(r.label for r in g), c.html()) for g, c in zip(found.groups, charts, strict=True) if c]
    return _folded(parts)


def _training(found: Overview) -> str:
    charts = _by_group(found, training_chart, "training-curves")
    open_runs = [run.label for run in found.trainings if not run.summary]
    note = f'<p class="note">Not finished: {escape(", ".join(open_runs))}.</p>' if open_runs else ""
    return charts + note if charts or note else ""


def _balance(found: Overview) -> str:
    return _by_group(found, balance_chart, "balance-curves")


# -- probes ----------------------------------------------------------------------------------------------------------


def _routing(found: Overview) -> str:
    return _folded([(p.label, routing_chart(p, f"routing-{place}").html()) for place, p in enumerate(found.probes)])


def _layers(found: Overview) -> str:
    return _folded([(p.label, _layer_part(p, place)) for place, p in enumerate(found.probes)])


def _layer_part(probe: Probe, place: int) -> str:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in headlines(probe.after, probe.before))
    found = "".join(f"<li>{escape(flag)}</li>" for flag in flags(probe.after))
    flagged = f'<ul class="flags">{found}</ul>' if found else ""
    chart = layers_chart(probe, f"layers-{place}").html()
    return f"<ul>{said}</ul>{flagged}{chart}{loss_table(probe.after)}"


def _tokens(found: Overview) -> str:
    probe = shown_probe(found)
    if probe is None:
        return ""
    return f'<p class="hint">{escape(probe.label)}</p>{token_view(probe.after)}'


def shown_probe(found: Overview) -> Probe | None:
    """The probe whose texts are shown: the first with named experts, else the first that has texts."""
    probes = [probe for probe in found.probes if probe.after.values.get("text")]
    return next((probe for probe in probes if any(probe.after.names)), next(iter(probes), None))


# -- results ---------------------------------------------------------------------------------------------------------


def _comparison(found: Overview) -> str:
    parts = []
    for place, comparison in enumerate(found.comparisons):
        values = comparison.values
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in comparison.verdict)
        warned = "".join(f"<li>{escape(str(warning))}</li>" for warning in values.get("warnings") or ())
        head, rows = comparison_rows(values)
        html = f'<ul class="summary">{said}</ul>' + (f'<ul class="flags">{warned}</ul>' if warned else "")
        html += _charts([comparison_chart(values, f"comparison-{place}")])
        parts.append((comparison.path.parent.name, html + table(head, rows, caption="Side by side, 95% intervals")))
    return _folded(parts)


def _sweep(found: Overview) -> str:
    parts = []
    for place, values in enumerate(found.sweeps):
        laws = "".join(f"<li>{escape(law)}</li>" for law in sweep_laws(values))
        head, rows = sweep_rows(values)
        charts = [
            sweep_chart(values, f"sweep-{place}", found.looks),
            needs_chart(values, f"needs-{place}", found.looks),
        ]
        html = _charts(charts) + f"<ul>{laws}</ul>"
        parts.append(
            (str(values.get("model", "")), html + table(head, rows, caption="What more data buys, 95% intervals"))
        )
    return _folded(parts)


def _speed(found: Overview) -> str:
    return _folded([bench_html(values, f"speed-{place}", found.looks) for place, values in enumerate(found.benches)])


# -- provenance ------------------------------------------------------------------------------------------------------


def _provenance(found: Overview) -> str:
    parts = [_of_model(label, model) for label, model in found.models]
    parts += [_of_run(run.label, run.recipe) for run in found.trainings]
    parts += [
        _of_result(label, values)
        for label, values in [
            *((f"compare: {c.path.parent.name}", c.values) for c in found.comparisons),
            *((f"sweep: {values.get('model', '')}", values) for values in found.sweeps),
            *((f"bench: {bench_label(values)}", values) for values in found.benches),
        ]
    ]
    return "\n".join(part for part in parts if part)


def _of_model(label: str, model: ModelFacts) -> str:
    values = without_places(dict(model.provenance))
    rows: list[tuple[str, Any]] = [("stage", values.get("stage")), ("class", model.architecture)]
    rows += [(f"source, {key}", f"{name}{extra}") for key, name, extra in sources(values)]
    rows += [("seed", values.get("seed"))]
    rows += [("versions", ", ".join(f"{key} {version}" for key, version in (values.get("versions") or {}).items()))]
    rows += [(engine, known) for engine, known in engines(model).items()]
    shown = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(show(value))}</dd>" for key, value in rows if value not in (None, "")
    )
    return _origin(label, str(values.get("stage") or "model"), f"<dl>{shown}</dl>{_command(values.get('command'))}")


def _of_run(label: str, recipe: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(without_places(dict(recipe)), sort_keys=False, allow_unicode=True)
    again = _command("smolmoe train recipe.yaml")
    return _origin(label, "recipe", f"<p>Save it as <code>recipe.yaml</code>.</p>{again}{_block(text)}")


def _of_result(label: str, values: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{key} {version}" for key, version in (values.get("versions") or {}).items())
    again = _command(without_places(values.get("command")))
    return _origin(label, "result", f"<dl><dt>versions</dt><dd>{escape(versions or '–')}</dd></dl>{again}")


def _origin(label: str, kind: str, html: str) -> str:
    return f"<details class='more'><summary>{escape(label)}, <span>{escape(kind)}</span></summary>{html}</details>"


def _command(command: str | None) -> str:
    return f"<p>To make it again:</p>{_block(command)}" if command else ""


def _block(text: str) -> str:
    button = '<button type="button" class="copy">Copy</button>'
    return f'<div class="code">{button}<pre tabindex="0"><code>{escape(text)}</code></pre></div>'
