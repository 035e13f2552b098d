"""The command line: parse, call one public function, print. Every decision is made elsewhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import Annotated

import typer

from smolmoe import __version__
from smolmoe.cli import (
    add_expert,
    align,
    bench,
    compare,
    distill,
    doctor,
    export,
    extract,
    fetch,
    generate,
    import_model,
    inspect,
    merge_experts,
    pairs,
    probe,
    prune,
    push,
    quickstart,
    report,
    route,
    run,
    score_corrections,
    score_data,
    select,
    sweep,
    teach,
    train,
    upcycle,
    verify,
)
from smolmoe.cli.command import Grouped
from smolmoe.cli.output import print_error
from smolmoe.cli.recipes import recipes_app
from smolmoe.errors import RequestError, SmolmoeError, TrainingError, VerificationError
from smolmoe.training.distributed import only_main_speaks

FAILED = 1  # a check was made and failed, or training could not go on
BAD_INPUT = 2  # the request, the source or the output is at fault
_MAY_BE_EMPTY = ("--prompt", "--system")  # texts; everything else that is empty came of a variable that is not set

app = typer.Typer(
    name="smolmoe",
    help="Convert a dense language model into a Mixture-of-Experts with the same outputs, train it, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=Grouped,
)


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


def _version(asked: bool) -> None:
    if asked:
        print(f"smolmoe {__version__}")
        raise typer.Exit


@app.callback()
def smolmoe(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Version number.")
    ] = False,
) -> None:
    pass


# In the order in which `smolmoe --help` shows them.
for command in (quickstart, upcycle, inspect, import_model, extract, prune, merge_experts, add_expert, train, run):
    command.COMMAND.add_to(app)
align_app = _group("Align a model on answers or preferences, and score it.")
for method in (*align.COMMANDS, pairs.COMMAND, score_corrections.COMMAND):
    method.add_to(align_app)
data_app = _group("Select, score, generate and download training rows.")
for command in (select, score_data, teach, fetch):
    command.COMMAND.add_to(data_app)
distill_app = _group("Cache a teacher's probabilities for distillation.")
distill_app.callback()(lambda: None)
distill.COMMAND.add_to(distill_app)
for name, group in {"align": align_app, "data": data_app, "distill": distill_app, "recipes": recipes_app}.items():
    app.add_typer(group, name=name, rich_help_panel="Train")
for command in (doctor, probe, route, generate, verify, compare, bench, sweep, export, report, push):
    command.COMMAND.add_to(app)


def main() -> None:
    """Entry point of the `smolmoe` command."""
    # A polite kill must clean up as Ctrl-C does: nothing half-written stays behind.
    signal.signal(signal.SIGTERM, _terminate)
    with only_main_speaks():
        try:
            _refuse_empty(sys.argv[1:])
            app()
        except SmolmoeError as error:
            print_error(error, as_json="--json" in sys.argv)
            sys.exit(FAILED if isinstance(error, VerificationError | TrainingError) else BAD_INPUT)
        except BrokenPipeError:
            raise
        except OSError as error:  # what no command expects: a disk that fails, a file that may not be read
            refused = SmolmoeError(f"{error.strerror or error}.", field="file", value=error.filename or "unknown")
            print_error(refused, as_json="--json" in sys.argv)
            sys.exit(BAD_INPUT)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Before they are parsed: an empty path would be the current folder from then on, and be written into."""
    for before, argument in pairwise(["", *arguments]):
        option, separator, value = argument.partition("=")
        name = option if option.startswith("--") and separator else before
        is_empty = not argument or (name == option and not value)
        if is_empty and name not in _MAY_BE_EMPTY:
            field = name.removeprefix("--") if name.startswith("--") else "argument"
            raise RequestError("is empty.", field=field, value=repr(""), fix="Give a value; . is the current folder.")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
