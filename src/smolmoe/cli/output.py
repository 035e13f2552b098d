"""What the terminal shows: results on stdout, progress and errors on stderr, and JSON with --json."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.cli.calling import as_typed
from smolmoe.core.devices import __name__ as DEVICES
from smolmoe.errors import SmolmoeError

if TYPE_CHECKING:
    from smolmoe.reports.blocks import Table

Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]

Quiet = Annotated[bool, typer.Option("--quiet", help="Only results, warnings and errors: no progress.")]

# Read by the libraries when they are imported, so that they say only what went wrong; also by child processes.
_VARIABLES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # What tokenizers does anyway; unset, it warns in every process that is forked later. None of ours tokenises.
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",
    # libgomp's threads spin while they wait; next to other busy processes that stalls training steps for seconds.
    "GOMP_SPINCOUNT": "1000",
}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within, other libraries show errors only: no warnings, messages and bars. Our own messages are shown."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ToStderr()])
    shown = warnings.showwarning
    # Not a filter: libraries change those. We have no warnings of this kind, but log them.
    warnings.showwarning = lambda *about, **more: None
    try:
        yield
    finally:
        warnings.showwarning = shown


class _ToStderr(logging.StreamHandler[Any]):
    """Our messages, and the errors of libraries, on the current stderr: a moving line replaces it to stay below them.

    The device of the computation is named once: every part of a command chooses it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._devices: set[str] = set()

    def filter(self, record: logging.LogRecord) -> Any:
        if record.name == DEVICES:
            device = record.getMessage()
            is_new = device not in self._devices
            self._devices.add(device)
            return is_new
        is_ours = record.name.partition(".")[0] == "smolmoe"
        return (is_ours or record.levelno >= logging.ERROR) and super().filter(record)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return as_typed(super().format(record))


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_error(error: SmolmoeError, *, as_json: bool) -> None:
    if as_json:
        print_json(error.to_json())
    where = f"{error.field} = {error.value}: " if error.field else ""
    print(f"error: {where}{as_typed(error.message)}", file=sys.stderr)
    if error.fix:
        print(f"  fix: {as_typed(error.fix)}", file=sys.stderr)


def unescaped(text: str) -> str:
    """Text with \\n replaced by a line break, which is hard to type in a shell."""
    return text.replace("\\n", "\n")


def print_rows(rows: Sequence[tuple[str, object]]) -> None:
    """Two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table that wraps to the terminal, or to 140 columns if stdout is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, no_wrap=index == 0)
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(grid, markup=False)


def print_tables(tables: Sequence[Table]) -> None:
    """Tables of a report, as they are on its page."""
    from smolmoe.reports.blocks import show

    for one in tables:
        table(one.caption, one.head, [[show(cell) for cell in row] for row in one.rows])


@contextmanager
def tell(show: bool) -> Iterator[None]:
    """Show smolmoe's own messages on stderr, such as the device and held-out losses."""
    logger = logging.getLogger("smolmoe")
    before = logger.level
    logger.setLevel(logging.INFO if show else before)
    # `quiet_libraries` adds no handler in a process that has configured logging itself.
    extra = [] if any(isinstance(handler, _ToStderr) for handler in logging.root.handlers) else [_ToStderr()]
    for handler in extra:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in extra:
            logger.removeHandler(handler)
