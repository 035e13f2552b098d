"""The tables on a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from smolmoe.core.statistics import Interval, signed
from smolmoe.reports.blocks import Fold, Table
from smolmoe.reports.probe_sentences import share_of
from smolmoe.reports.specialisation_data import Probed
from smolmoe.reports.tokens import visible
from smolmoe.results.probe import Baseline, LayerResult, Losses, TopToken


def layer_table(after: Probed) -> Table:
    """All numbers of all layers."""
    columns: list[tuple[str, str, Callable[[LayerResult], Any]]] = [
        ("layer", "", lambda row: str(row.layer)),
        ("load entropy", "1 is even", lambda row: f"{row.entropy:.3f}"),
        ("CV of the load", "0 is even", lambda row: f"{row.cv:.2f}"),
        ("MaxVio", "0 is even", lambda row: f"{row.max_vio:.2f}"),
        ("active", "% of experts", lambda row: f"{row.active_percent:.0f}"),
        ("dead", "experts", lambda row: ", ".join(map(str, row.dead)) or "none"),
        ("top gate", "mean", lambda row: f"{row.confidence:.2f}"),
        ("separation", "bits (95% chance)", lambda row: _over(row.separation, row.separation_baseline)),
        (
            "mutual information",
            "bits (95% chance)",
            lambda r: _over(r.mutual_information, r.mutual_information_baseline),
        ),
        ("… given the token type", "bits", lambda row: f"{row.domain_within_type:.3f}"),
        ("… of the token type", "bits", lambda row: f"{row.token_type_information:.3f}"),
        ("contrast", "times (95% chance)", lambda row: _over(row.contrast, row.contrast_baseline, 2)),
        ("contrast of", "expert: domains", lambda row: f"{row.contrast_expert}: {' over '.join(row.contrast_domains)}"),
    ]
    head, units, _ = zip(*columns, strict=True)
    rows = [[of(row) for _, _, of in columns] for row in after.result.layers]
    return Table(head, rows, look="numbers", units=units)


def vocabulary_tables(after: Probed) -> list[Fold]:
    """The top tokens of each expert, a table for each layer; the clearest layer's is open."""
    found = after.result.vocabulary
    head = ["expert", "tokens routed to it more than others, beyond chance (share of their occurrences, occurrences)"]
    return [
        Fold(
            f"Layer {layer}: vocabulary specialisation {share_of(found.specialisation[place])}",
            [
                Table(
                    head,
                    [[label, _tokens(top)] for label, top in zip(after.labels, found.top[place], strict=True)],
                    "",
                    "words",
                )
            ],
            opened=place == after.clearest,
        )
        for place, layer in enumerate(after.layers)
    ]


def loss_table(after: Probed) -> list[Table]:
    """Held-out loss of each domain, and that of the dense model if measured."""
    found = after.result.losses
    if found is None:
        return []
    dense = ["dense model", "difference"] if found.dense else []
    head = ["domain", "tokens", "loss", *dense, "own experts", "change with only them", "change without them"]
    rows = [_loss_row(found, domain, place) for place, domain in enumerate(after.domains)]
    return [Table(head, rows, "Held-out loss (nats per token)")]


def _loss_row(found: Losses, domain: str, place: int) -> list[Any]:
    base, own = found.base[domain], found.own[place]
    cells: list[Any] = [domain, found.tokens[domain], f"{base:.4f}"]
    if found.dense:
        cells += [f"{found.dense[domain]:.4f}", _change(found.dense_gap, place, base - found.dense[domain])]
    if own is None:
        return [*cells, "none", "", ""]
    out = found.knocked_out[place][own]
    without = "" if out is None else _change(found.knocked_out_gap, place, out - base)
    return [*cells, found.labels[own], _signed(found.forced[place][own] - base), without]


def _change(gaps: Sequence[Interval | None], place: int, value: float) -> str:
    """A change with its interval, if measured."""
    gap = gaps[place] if gaps else None
    return _signed(value) + (f" [{_signed(gap.low)}, {_signed(gap.high)}]" if gap else "")


def _tokens(top: Sequence[TopToken]) -> Markup:
    if not top:
        return Markup("none beyond chance")
    form = Markup('<span class="tok">{}</span>&nbsp;<span class="n">{},&nbsp;{}</span>&ensp;')
    return Markup(" ").join(form.format(visible(item.token), share_of(item.share, 0), item.count) for item in top)


def _over(value: float, chance: Baseline, digits: int = 3) -> str:
    """A number with the chance baseline in brackets."""
    return f"{value:.{digits}f} ({chance.p95:.{digits}f})"


def _signed(value: float) -> str:
    return signed(value).replace("-", "−")
