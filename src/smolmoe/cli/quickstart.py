"""quickstart: all steps on a small example, or on a model of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from smolmoe.cli.calling import print_next
from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import table
from smolmoe.pipeline.quickstart import quickstart

if TYPE_CHECKING:
    from smolmoe.pipeline.run import PipelineResult

EXAMPLE = "HuggingFaceTB/SmolLM2-135M-Instruct"
WIDTH = 100  # of sentences
PROMPT = "def read_lines(path):"


def show_quickstart(result: PipelineResult, given: Given) -> None:
    """A row for each stage, what was learned, the page, and what to type next."""
    from smolmoe.pipeline import lessons, summary

    table(str(result.out), *summary.table(result.out, result.stages))
    routing = lessons.routing_table(result.stages)
    if routing is not None:
        table("Share of each expert in the choices for held-out text, last third of the layers", *routing)
    for answer in lessons.answers(result.stages):
        print(f"> {answer['prompt'].strip()}\n{answer['text'].strip()}")
        print(f"  [leading expert: {answer['expert']}, {answer['share']:.0%}]\n")
    print("What was learned")
    for sentence in lessons.lessons(result.stages):
        print(fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  "))
    print("\nThe page, to open in a browser")
    print(f"  {_address(lessons.page(result.stages))}")
    print_next(_next(result, given.get("model")))


def _address(page: str | None) -> str:
    return "" if page is None else Path(page).resolve().as_uri()


def _next(result: PipelineResult, model: Any) -> Iterator[tuple[tuple[object, ...], str]]:
    """Commands without the program, and their purpose.

    Args:
        model: the user's, if any.
    """
    out = result.out
    if model is None:
        yield ("quickstart", "--model", EXAMPLE), "the same on a real model, in about two minutes (270 MB to download)"
        yield ("doctor", out / "moe-trained" / "model"), "the state of its routers and experts"
        yield ("recipes",), "longer trainings that run as they are"
        return
    named = out / "named" / "model"
    dense = out / "model" if "model" in result.stages else model  # a GGUF file was imported
    yield ("route", named, PROMPT), "the expert for a text"
    if result.stages["answers"]["result"]["chat"]:
        yield ("chat", named), "a conversation with the MoE"
    else:
        yield ("generate", named, "--prompt", PROMPT), "a text by the MoE"
    yield ("specialise", dense, "--data", "TEXT", "--dry-run"), "what it takes to train the experts on your own text"


COMMAND = Command(
    quickstart,
    show_quickstart,
    only=("out", "model", "minutes", "seed", "overwrite"),
    as_options=("out",),
    names={"out": ("--out", "-o")},
)
