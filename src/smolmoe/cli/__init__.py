"""The command line: parse, call one function, print. Every decision is made elsewhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType

import typer

from smolmoe.cli import (
    benching,
    comparing,
    convert,
    distilling,
    experts,
    exporting,
    groups,
    models,
    probing,
    proofs,
    pushing,
    reporting,
    sweeping,
    training,
)
from smolmoe.cli.output import print_error
from smolmoe.errors import RequestError, SmolmoeError, TrainingError, VerificationError
from smolmoe.training.distributed import only_main_speaks

FAILED = 1  # a check was made and failed, or training could not go on
BAD_INPUT = 2  # the request, the source or the output is at fault
_MAY_BE_EMPTY = ("--prompt", "--system")  # texts; everything else that is empty came of a variable that is not set

app = typer.Typer(
    name="smolmoe",
    help="Turn a dense causal language model into a Mixture-of-Experts, and prove by measurement what came out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
convert.add_to(app)
proofs.add_to(app)
training.add_to(app)
probing.add_to(app)
experts.add_to(app)
models.add_to(app)
groups.add_to(app)
distilling.add_to(app)
benching.add_to(app)
comparing.add_to(app)
sweeping.add_to(app)
reporting.add_to(app)
pushing.add_to(app)
exporting.add_to(app)


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
