"""What the terminal shows: results on stdout, progress and errors on stderr, and JSON with --json."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smolmoe.core import units
from smolmoe.errors import SmolmoeError

if TYPE_CHECKING:
    from smolmoe.reports.blocks import Table

Json = Annotated[bool, typer.Option("--json", help="Output as JSON.")]

_STAGES = {
    "plan": "Reading headers and planning",
    "router": "Reading the domains' text for the router",
    "predict": "Predicting errors on the dense model",
    "write": "Writing",
    "verify": "Reloading the files and measuring",
}


def quiet_libraries() -> None:
    """Silence other libraries' messages, except errors."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # libgomp's threads spin while they wait; next to other busy processes that stalls training steps for seconds.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_ToStderr()])


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to the current stderr: a progress bar replaces it, so that lines do not run into the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_error(error: SmolmoeError, *, as_json: bool) -> None:
    if as_json:
        print_json(error.to_json())
    where = f"{error.field} = {error.value}: " if error.field else ""
    print(f"error: {where}{error.message}", file=sys.stderr)
    if error.fix:
        print(f"  fix: {error.fix}", file=sys.stderr)


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
def progress(show: bool) -> Iterator[Any]:
    """Progress as a bar per stage on stderr; silent if `show` is false, plain lines if stderr is not a terminal."""
    if not show or not sys.stderr.isatty():
        yield _log if show else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total or None)
            bars.update(tasks[stage], completed=done)

        yield report


@contextmanager
def tell(show: bool) -> Iterator[None]:
    """Show smolmoe's own messages (held-out losses, stages) on stderr."""
    logger = logging.getLogger("smolmoe")
    before = logger.level
    logger.setLevel(logging.INFO if show else before)
    try:
        yield
    finally:
        logger.setLevel(before)


def _log(stage: str, done: int, total: int) -> None:
    """A line per stage, for logs: when it starts, and when writing ends."""
    if done == 0:
        print(f"{_STAGES.get(stage, stage)} ...", file=sys.stderr)
    elif stage == "write" and done == total:
        print(f"Written: {units.size(total)}", file=sys.stderr)
