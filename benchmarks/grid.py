"""A benchmark of many cases: its options, what was measured so far, and where that is shown.

Cases go to a JSON file as they are done. Those of the same commit are not measured again, so that an interrupted run
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from machine import HERE, describe, in_words, put_between


class Case(Protocol):
    """A named tuple of what is measured."""

    @property
    def name(self) -> str: ...

    def _asdict(self) -> dict[str, Any]: ...


def options(description: str | None) -> argparse.ArgumentParser:
    """What the command of every such benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these in it")
    parser.add_argument("--again", action="store_true", help="also what is measured already")
    parser.add_argument("--table", action="store_true", help="measure nothing: write what is shown")
    parser.add_argument("--print", action="store_true", help="print only: leave results/ and docs/ alone")
    return parser


def results(
    arguments: argparse.Namespace, file: Path, cases: Sequence[Case], measure: Callable[[Any], dict[str, Any]]
) -> dict[str, Any]:
    """`machine` and `cases` by name: those of the file, with what is asked for measured anew unless --table.

    Args:
        measure: `seconds` of each contender of a case, and what else is kept of it.
    """
    kept = not arguments.print
    found = json.loads(file.read_text()) if kept and file.is_file() else {"cases": {}}
    if not arguments.table:
        found["machine"] = describe()
        commit = found["machine"]["commit"]
        asked = [case for case in cases if any(part in case.name for part in arguments.only)]
        for number, case in enumerate(asked, 1):
            if found["cases"].get(case.name, {}).get("commit") == commit and not arguments.again:
                continue
            figures = measure(case)
            found["cases"][case.name] = {**case._asdict(), **figures, "commit": commit}
            said = ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in figures["seconds"].items())
            print(f"{number} of {len(asked)}, {case.name}: {said} ms", file=sys.stderr, flush=True)
            if kept:
                file.write_text(json.dumps(found, indent=1) + "\n")
    if not found["cases"]:
        raise SystemExit("nothing is measured: no case has this name, or --table came first")
    return found


def show(name: str, found: dict[str, Any], text: str, *, only_print: bool) -> None:
    """Print a table, and put it with the machine and the commits between NAME's markers in docs/reference/speed.md."""
    print(text)
    if only_print:
        return
    where = in_words(found["machine"], "commit")  # each case has its own
    commits = ", ".join(sorted({case["commit"] for case in found["cases"].values()}))
    put_between(
        HERE.parent / "docs" / "reference" / "speed.md", name, f"{text}\n\nMeasured on: {where}; commit {commits}."
    )
