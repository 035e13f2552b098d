"""The part on one probe, the same in its page and in the report: matrix and sentences, tokens, details."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from smolmoe.reports.blocks import Block, Findings, Fold, Words
from smolmoe.reports.figures import Figure
from smolmoe.reports.names import OTHER, PROBE_NAMES, ROUTER, Looks
from smolmoe.reports.page import Section
from smolmoe.reports.plot import plot
from smolmoe.reports.probe_sentences import documents_said, flags, sentences
from smolmoe.reports.probe_tables import layer_table, loss_table, vocabulary_tables
from smolmoe.reports.specialisation import losses, specialisation_figures
from smolmoe.reports.specialisation_data import Probed
from smolmoe.reports.specialisation_experts import expert_figures
from smolmoe.reports.tokens import Tokens
from smolmoe.reports.training_curves import History, training_figures


def probe_figures(after: Probed, before: Probed | None, histories: Sequence[History] = ()) -> list[Figure]:
    """All figures of a probe that it has numbers for."""
    pay = losses(after)
    found = [*specialisation_figures(after, before), *expert_figures(after, before), *training_figures(histories)]
    return [*found, *([pay] if pay else [])]


def probe_sections(after: Probed, figures: Sequence[Figure], *, png: bool = False) -> list[Section]:
    """What the experts do, token by token, and the details.

    Args:
        figures: of `probe_figures`.
        png: the page's folder has a PNG of each.
    """
    found = [
        Section("experts", "What the experts do", first_screen(after, figures, png=png)),
        Section("tokens", "Token by token", [Tokens(after)] if after.result.text else []),
        Section("details", "Details", details(after, figures, png=png)),
    ]
    return [section for section in found if section.blocks]


def first_screen(after: Probed, figures: Sequence[Figure], *, png: bool = False) -> list[Block]:
    """The matrix of domains and experts, and three sentences."""
    said = [(sentence.question, sentence.text) for sentence in sentences(after)]
    return [plot(next(figure for figure in figures if _kind(figure) == "routing"), png=png), Findings(said)]


def details(after: Probed, figures: Sequence[Figure], *, png: bool = False) -> list[Block]:
    """All other figures and tables, folded by question."""
    by_kind = {_kind(figure): figure for figure in figures}

    def pick(*kinds: str) -> list[Block]:
        return [plot(by_kind[kind], png=png) for kind in kinds if kind in by_kind]

    warned, documents = flags(after), documents_said(after)
    effects = after.result.losses.summary if after.result.losses else ()
    folds = {
        "Routing compared with chance": [*pick("separation"), layer_table(after)],
        "Routing accuracy": [
            *pick("accuracy", "accuracy-domains"),
            *([Words([documents])] if documents else []),
        ],
        "Effect on the loss": [
            *([Words(warned, "flags")] if warned else []),
            *([Words(effects)] if effects else []),
            *pick("losses"),
            *loss_table(after),
        ],
        "Load, similarity and co-activation": pick(
            *("load", "saturation", "similarity", "similarity-layers", "coactivation")
        ),
        "Token types, and the tokens of each expert": [*pick("token-types"), *vocabulary_tables(after)],
        "Training": pick("training-loss", "training-domains", "training-terms", "training-balance"),
    }
    return [Fold(label, blocks) for label, blocks in folds.items() if blocks]


def in_report(figures: Sequence[Figure], model: str, looks: Looks, place: int) -> list[Figure]:
    """The figures for a page with other models: the router has the colour of its model.

    Args:
        model: name of the probed model.
        place: of the probe in the page, for unique ids.
    """
    names = PROBE_NAMES | {OTHER: "other"}
    places = {at: looks(model if at == ROUTER else f"{name} ({model})") for at, name in names.items()}
    return [replace(figure.placed(places), name=f"{figure.name}-{place}") for figure in figures]


def _kind(figure: Figure) -> str:
    """Its name without the probe's place in the page."""
    return re.sub(r"-\d+$", "", figure.name)
