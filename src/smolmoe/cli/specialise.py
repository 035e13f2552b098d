"""specialise: an expert for each domain of a text."""

from __future__ import annotations

from collections.abc import Iterator

from smolmoe.cli.calling import print_next
from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.pipeline.specialise import Specialisation, specialise


def _show_forecast(found: Specialisation, given: Given) -> None:
    table("", ["chosen", "value", "why"], [[one["name"], one["shown"], one["why"]] for one in found.choices])
    rows = [
        [
            cost.stage,
            cost.what,
            units.tokens(cost.tokens) if cost.tokens else "",
            f"{cost.steps:,}" if cost.steps else "",
            units.duration(cost.seconds),
            units.size(cost.memory) if cost.memory else "",
            units.size(cost.disk) if cost.disk else "",
        ]
        for cost in found.costs
    ]
    table(f"would write {found.out}", ["stage", "does", "tokens", "steps", "time", "memory", "disk"], rows)
    print(
        f"about {units.duration(found.seconds)} on this machine, {units.size(found.disk)} of disk; nothing is written"
    )
    for note in found.notes:
        print(f"note: {note}")


def _show(found: Specialisation, given: Given) -> None:
    table("held-out loss, nats per token", *_losses(found))
    if found.accuracy is not None:
        print(f"routing: {found.accuracy:.1%} of held-out tokens go to the expert of their domain")
    for sentence in found.verdict:
        print(sentence)
    print("\nwritten")
    print_rows([("model", found.model), ("report", found.page), ("recipe", found.out / "recipe.yaml")])
    print_next(_next(found))


def _next(found: Specialisation) -> Iterator[tuple[tuple[object, ...], str]]:
    model = found.model
    is_named = found.accuracy is not None
    yield ("generate", model, "--prompt", "Once upon a time"), "a text by it"
    if is_named:
        yield ("route", model, "Once upon a time"), "the expert for a text"
        domain = next(name for name in found.losses if name != "all")
        dense = found.out / f"{domain}-dense"
        yield ("extract", model, dense, "--expert", domain), "that expert as a dense model"
    yield ("push", model, "me/my-moe", "--dry-run"), "what publishing it would send"


def _losses(found: Specialisation) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a domain each; the loss before, after, and of the dense model on the same text."""
    names = list(next(iter(found.losses.values()), {}))
    before, dense, moe = (names + [""] * 3)[:3]
    rows = []
    for domain, losses in found.losses.items():
        change, against = losses[moe] - losses[before], losses[moe] - losses[dense]
        rows.append(
            [domain, *(f"{losses[name]:.4f}" for name in (before, dense, moe)), f"{change:+.4f}", f"{against:+.4f}"]
        )
    return ["domain", "before", dense, moe, "MoE vs before", "MoE vs dense"], rows


COMMAND = Command(
    specialise,
    _show,
    _show_forecast,
    as_options=("data", "out"),
    names={"out": ("--out", "-o")},
)
