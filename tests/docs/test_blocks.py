"""Every block of the README and of docs/ runs, on tiny models and texts that stand in for the reader's (stand_ins.py).

Python is executed, a page's blocks in order and with the same names; `smolmoe` lines of bash blocks are executed;
lines of a synopsis are parsed by the commands themselves; printed output is compared in shape with what is printed
today; YAML goes through the recipes. A block that is none of these fails.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docs import commands, recipes, stand_ins
from tests.docs.blocks import GENERATED, PAGES, ROOT, Block, blocks_of

READ = [page for page in PAGES if page.name not in GENERATED]


@pytest.fixture(scope="session")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The hub's cache, tiny and with true sizes."""
    return {
        sizes: stand_ins.hub_cache(tmp_path_factory.mktemp("sizes" if sizes else "hub"), sizes=sizes)
        for sizes in (False, True)
    }


@pytest.fixture
def reader(tmp_path: Path, hubs: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setenv("SMOLMOE_CACHE", str(tmp_path / "cache"))
    stand_ins.use_data_sets(monkeypatch, tmp_path / "sets")
    work = tmp_path / "work"
    work.mkdir()
    with contextlib.chdir(work):
        yield Reader(work, hubs, monkeypatch)


class Reader:
    """Somebody who does what a page says, block by block."""

    def __init__(self, work: Path, hubs: dict[bool, Path], monkeypatch: pytest.MonkeyPatch):
        self.work, self.hubs, self.monkeypatch = work, hubs, monkeypatch
        self.names: dict[str, Any] = {"__name__": "page"}

    def read(self, block: Block, *, slow: bool) -> None:
        """Run one block; a slow one only where that is wanted.

        Raises:
            AssertionError: it does not do what it says, or is of no known kind.
        """
        stand_ins.use_hub(self.monkeypatch, self.hubs["sizes" in block.run])
        if block.language == "yaml":
            recipes.check(block.text)
        elif block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)
        elif {"parsed", "elsewhere", "printed"} & set(block.run) or ("slow" in block.run and not slow):
            self._check(block)
        elif block.language == "python":
            self._python(block)
        elif block.language == "bash":
            for line in commands.lines_of(block.text):
                stand_ins.put_places(self.work, line)
                done = commands.run(line, self.work, block.changes)
                assert done.code == 0, f"{line}\n{done.stdout[-2000:]}"
        elif block.text.startswith("$ "):
            self._transcript(block)
        elif block.language == "":
            for line in commands.lines_of(block.text):
                commands.check(line, self.work)
        else:
            raise AssertionError(f"a block of an unknown kind: {block.language!r}")

    def _check(self, block: Block) -> None:
        """What is not run here: its commands, its syntax, and what is said of it."""
        if "elsewhere" in block.run:
            file, _, test = block.run["elsewhere"].partition("::")
            assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"no test {block.run['elsewhere']}"
        if "parsed" in block.run:
            assert block.run["parsed"], "say why it is only parsed"
        if "printed" in block.run:
            command = re.fullmatch(r"by `(.+)`", block.run["printed"])
            assert command is not None, "say by which command"
            commands.check(command[1], self.work)
            if command[1].startswith("smolmoe run "):
                self._check_labels(command[1].split()[-1], block.text)
        elif block.language == "python":
            ast.parse(block.text)
        else:
            lines = commands.lines_of(block.text)
            if block.text.startswith("$ "):  # what is printed is no command
                lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
            for line in lines:
                commands.check(line, self.work)

    def _check_labels(self, recipe: str, text: str) -> None:
        """What a pipeline's reports compare has a row of that name."""
        from smolmoe.recipe.files import load

        reports = [stage["report"] for stage in load(recipe, kind="pipeline")["stages"] if "report" in stage]
        for label in {label for report in reports for label in report["after"]}:
            assert re.search(rf"^{re.escape(label)} +[-+.\d]", text, re.MULTILINE), f"no row of {label!r}"

    def _python(self, block: Block) -> None:
        try:
            code = compile(block.text, block.where, "exec")
        except SyntaxError:  # entries of a dictionary
            code = compile(f"{{{block.text}}}", block.where, "eval")
        stand_ins.put_places(self.work, block.text)
        for name in set(code.co_names) & stand_ins.GIVEN - set(self.names):
            self.names[name] = stand_ins.given(name, self.work)
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, self.names)

    def _transcript(self, block: Block) -> None:
        """Commands behind `$`, each with what it prints."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, printed = part.partition("\n")
            stand_ins.put_places(self.work, line)
            done = commands.run(line, self.work, block.changes)
            exact = "sizes" in block.run
            found = [commands.shape(text, exact=exact) for text in done.stdout.splitlines()]
            for text in printed.splitlines():
                said = commands.shape(text, exact=exact)
                if said not in ("", "..."):
                    assert said in found, f"{line} does not print\n  {said}\nbut\n  " + "\n  ".join(found)


def go_through(page: Path, reader: Reader, *, slow: bool) -> None:
    for block in blocks_of(page):
        try:
            reader.read(block, slow=slow)
        except Exception as error:
            raise AssertionError(f"{block.where}: {error}") from error


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_every_block_runs(page: Path, reader: Reader) -> None:
    go_through(page, reader, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in READ if any("slow" in block.run for block in blocks_of(page))], ids=lambda page: page.stem
)
def test_slow_blocks_run_too(page: Path, reader: Reader) -> None:
    go_through(page, reader, slow=True)
