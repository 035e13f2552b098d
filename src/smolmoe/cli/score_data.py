"""data score: what the selection scores measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import understand

if TYPE_CHECKING:
    from smolmoe.selection.explain import PartScore, RowScores, ScoreTable, TextScore


def show_text(found: TextScore) -> None:
    print(f"score {found.score:+.3f} ({found.plain:.3f} bits), against {found.against}")
    if found.perplexity is not None:
        print(f"perplexity {found.perplexity:.2f} (loss {found.loss:.4f} nats per token)")
    parts = [("text", found.text, found.text_weight)]
    if found.prompt is not None:
        parts.append(("prompt", found.prompt, found.prompt_weight))
    for name, part, weight in parts:
        _show_part(name, part, weight if len(parts) > 1 else found.text_weight + found.prompt_weight)


def _show_part(name: str, part: PartScore, weight: float) -> None:
    print(f"{name}, weight {weight:g}")
    print_rows(
        [
            ("tokens", f"{part.tokens}, {part.distinct} distinct"),
            ("entropy", f"{part.bits:.3f} bits, at most {part.most:.3f} (no token repeated)"),
            (
                "texts of this length",
                f"{part.expected:.3f} ± {part.deviation:.3f} bits, of {part.shortest} to {part.longest} tokens",
            ),
            ("normalised", f"{part.normalised:+.3f} deviations"),
        ]
    )
    rows = [[repr(f.token), f.count, f"{f.share:.1%}", f"{f.share_of_entropy:.1%}"] for f in part.frequent]
    table("Most frequent tokens", ["token", "count", "of the tokens", "of the entropy"], rows)


def show_rows(found: RowScores) -> None:
    print(f"{found.rows} rows, {units.tokens(found.tokens)} tokens")
    print_rows([("left out", f"{rows} {reason}") for reason, rows in found.dropped.items()])
    for name, scores in found.scores.items():
        _show_scores(name, scores)


def _show_scores(name: str, scores: ScoreTable) -> None:
    quantiles = ", ".join(f"{float(share):.0%} {value:.3f}" for share, value in scores.quantiles.items())
    print(f"{name}: quantiles {quantiles}; rank correlation with length {scores.length_correlation:+.2f}")
    for title, rows in (("highest", scores.highest), ("lowest", scores.lowest)):
        cells = [[f"{row.score:.3f}", row.tokens, row.group, row.place, row.begins] for row in rows]
        table(f"{name}: {title}", ["score", "tokens", "group", "place", "beginning"], cells)


def show_scores(found: TextScore | RowScores, given: Given) -> None:
    """Of a text, or of rows."""
    from smolmoe.selection.explain import TextScore

    show_text(found) if isinstance(found, TextScore) else show_rows(found)


COMMAND = Command(understand.score_data, show_scores)
