"""data select: which rows to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smolmoe.cli.command import Command
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.verbs import train

if TYPE_CHECKING:
    from smolmoe.selection.results import GroupResult, Selection


def show_selection(selection: Selection) -> None:
    """The choice by group, what was left out, and what is missing."""
    unit = selection.recipe["unit"]
    tokens = "" if selection.tokens is None else f", {units.tokens(selection.tokens)} tokens"
    print(f"{selection.path}: {selection.rows} of {selection.read} rows{tokens}")
    said: list[tuple[str, object]] = [("score", _described(selection.recipe))]
    said += [("left out", f"{rows} {reason}") for reason, rows in selection.dropped.items()]
    if selection.held_out:
        said.append(("held out", f"{selection.held_out} documents, in {selection.out / 'held-out.jsonl'}"))
    said.append(("length", f"rank correlation with the score {selection.length_correlation:+.2f}"))
    said.append(("", f"the selected rows have {selection.chosen_length:.2f} times the mean length of their groups"))
    if selection.shortfall:
        said.append(
            ("shortfall", f"{selection.shortfall} {unit} fewer than the {selection.recipe['budget']} requested")
        )
    said += [("empty group", label) for label in selection.empty_groups]
    print_rows(said)
    if selection.groups:
        columns = [
            "group",
            "supply",
            "quota",
            "selected",
            "for other groups",
            "missing",
            "median score",
            "of the selected",
        ]
        table(f"Groups, in {unit}", columns, [_group_row(group) for group in selection.groups])


def _described(recipe: Any) -> str:
    if recipe["score"] == "random":
        return f"random, seed {recipe['seed']}"
    form = {"entropy": "entropy in bits" if recipe["plain"] else "entropy, deviations from texts of the same length"}
    prefer = recipe["prefer"] or ("middle" if recipe["score"] == "perplexity" else "high")
    return f"{form.get(recipe['score'], 'loss, nats per token')}; {prefer} preferred"


def _group_row(group: GroupResult) -> list[object]:
    medians = ["-" if scores is None else f"{scores['0.5']:.3f}" for scores in (group.scores, group.chosen_scores)]
    return [group.label, group.supply, group.quota, group.chosen, group.filled, group.shortfall, *medians]


COMMAND = Command(train.select, lambda selection, given: show_selection(selection))
