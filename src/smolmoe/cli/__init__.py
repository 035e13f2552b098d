"""The command line: parse, call one public function, print. No decisions are made here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from smolmoe import __version__
from smolmoe.cli.groups import Group
from smolmoe.cli.output import print_error
from smolmoe.errors import RequestError, SmolmoeError, TrainingError, VerificationError
from smolmoe.training.distributed import only_main_speaks

FAILED = 1  # a check failed, or training could not continue
BAD_INPUT = 2  # the request, the source or the output is wrong
_MAY_BE_EMPTY = ("--prompt", "--system")  # texts; any other empty argument comes from a variable that is not set


def _by_name(*verbs: str) -> dict[str, str | TyperGroup]:
    return {verb.replace("_", "-"): verb for verb in verbs}


def _group(name: str, text: str, commands: dict[str, str | TyperGroup]) -> dict[str, str | TyperGroup]:
    return {name: Group({"Commands": commands}, name=name, help=text)}


_ALIGN = _by_name("sft", "dpo", "cpo") | {"pairs": "make_pairs", "score": "score_corrections"}
_DATA = _by_name("select") | {"score": "score_data"} | _by_name("teach", "fetch")
# In the order in which `smolmoe --help` shows them.
_HEADINGS = {
    "Convert": _by_name("quickstart", "specialise", "upcycle", "inspect")
    | {"import": "import_model"}
    | _by_name("extract", "prune", "merge_experts", "add_expert"),
    "Train": _by_name("train", "run")
    | _group("align", "Align a model on answers or preferences, and score it.", _ALIGN)
    | _group("data", "Select, score, generate and download training rows.", _DATA)
    | _group("distill", "Cache a teacher's probabilities for distillation.", {"cache": "distill"})
    | _by_name("init", "recipes"),
    "Understand": _by_name("doctor", "probe", "route", "generate", "chat"),
    "Measure": _by_name("verify", "compare", "bench", "sweep"),
    "Ship": _by_name("export", "report", "push"),
}


class _Commands(Group):
    """What typer makes of the whole program."""

    def __init__(self, **options: Any):
        super().__init__(_HEADINGS, **options)


app = typer.Typer(
    name="smolmoe",
    help="Convert a dense language model into a Mixture-of-Experts with the same outputs, train it, and measure it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    cls=_Commands,
)


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


def main() -> None:
    """Entry point of the `smolmoe` command."""
    # SIGTERM must clean up as Ctrl-C does: nothing incomplete is left.
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
        except OSError as error:  # unexpected: a disk that fails, a file that may not be read
            refused = SmolmoeError(f"{error.strerror or error}.", field="file", value=error.filename or "unknown")
            print_error(refused, as_json="--json" in sys.argv)
            sys.exit(BAD_INPUT)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Checked before parsing: an empty path would become the current folder, and be written into."""
    for before, argument in pairwise(["", *arguments]):
        option, separator, value = argument.partition("=")
        name = option if option.startswith("--") and separator else before
        is_empty = not argument or (bool(separator) and name == option and not value)
        if is_empty and name not in _MAY_BE_EMPTY:
            field = name.removeprefix("--") if name.startswith("--") else "argument"
            raise RequestError("is empty.", field=field, value=repr(""), fix="Give a value; . is the current folder.")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
