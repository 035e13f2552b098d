"""Killed at a hundred random points in all, no command loses anything, and each ends as if it had never been killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_server import answer, serving
from tests.faults.jobs import JOBS, OUT
from tests.faults.kills import Point, Ran, run

pytestmark = pytest.mark.slow
KILLS = {"upcycle": 20, "export": 12, "train": 24, "align": 16, "distill": 16, "teach": 12}
IN_A_ROW = 4  # kills before a job may end


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with serving(lambda prompt, _: answer(f"About {prompt}.")) as server:
        yield server.url


def test_the_points_are_a_hundred() -> None:
    assert sum(KILLS.values()) == 100


@pytest.mark.parametrize("name", JOBS)
def test_killed_at_random_points(name: str, teacher: str, tmp_path: Path) -> None:
    job, draw = JOBS[name], random.Random(name)
    folder = tmp_path / "work"
    folder.mkdir()
    job.inputs(folder)
    whole = run(job.go, str(folder), teacher)
    expected = job.outcome(folder)
    kept = neighbours(folder)
    kills = 0
    while kills < KILLS[name]:
        replaced = draw.random() < 0.5 and name in ("upcycle", "export")  # with --overwrite, over a finished one
        if not replaced:
            shutil.rmtree(folder / OUT)
        for _ in range(IN_A_ROW):
            kills += run(job.go, str(folder), teacher, point=somewhere(whole, draw)).killed
            assert not replaced or (folder / OUT).exists(), "a moment without the model"
            job.valid_at_any_time(folder, expected)
            assert kept == neighbours(folder)
        run(job.go, str(folder), teacher)
        assert job.outcome(folder) == expected
        assert kept == neighbours(folder)
        assert leftovers(folder) == set()


def somewhere(whole: Ran, draw: random.Random) -> Point:
    """A point of a run that does as much as the whole one did; a shorter one may end before it."""
    if draw.random() < 0.5:
        return Point(operation=draw.randint(1, max(1, whole.operations)))
    return Point(seconds=max(0.001, draw.uniform(0, whole.seconds)))


def neighbours(folder: Path) -> dict[str, Any]:
    """Everything in the folder that is not the job's own: its inputs, and what a user keeps there."""
    mine = folder / f".{OUT}.2024.backup"
    if not mine.exists():
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not is_ours(file.relative_to(folder)))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def is_ours(path: Path) -> bool:
    return path.parts[0] == OUT or path.parts[0] == "cache" or path.parts[0] in leftovers_of(path)


def leftovers_of(path: Path) -> set[str]:
    """The first part of the path where it is work of ours in progress, or left by a kill."""
    first = path.parts[0]
    return {first} if first.startswith(f".{OUT}.") and first != f".{OUT}.2024.backup" else set()


def leftovers(folder: Path) -> set[str]:
    return {name.name for name in folder.iterdir() if leftovers_of(name.relative_to(folder))}
