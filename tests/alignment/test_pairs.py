"""Edit distances, and which of two answers is preferred."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from smolmoe.alignment.pairs import Answered, PairsFolder, Shard, edit_distance, prefer
from smolmoe.errors import CheckpointError, DataError, OutputError


def by_table(a: str, b: str) -> int:
    """Levenshtein's distance, by its recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("", "", 0), ("same", "same", 0), ("ab", "ba", 2)],
)
def test_known_distances(a: str, b: str, expected: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == expected


def test_distances_are_those_of_the_table() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("abé😀 ", k=rng.randrange(100))) for _ in range(2))
        assert edit_distance(a, b) == by_table(a, b)


def test_the_answer_nearer_to_any_reference_wins() -> None:
    found = prefer(("He gose.", "He went."), ("He goes.", "He had gone."))
    assert found.distances == (2, 4)
    assert found.winner == 0
    assert found.scores == pytest.approx((1 - 2 / 12, 1 - 4 / 12))  # the longest text has 12 characters
    assert prefer(("xx", "He had gone"), ("He goes.", "He had gone.")).winner == 1


def test_equally_near_is_a_tie_and_one_text_twice_is_said_to_be() -> None:
    tie = prefer(("He goe.", "He gos."), ("He goes.",))
    assert (tie.winner, tie.same, tie.distances) == (None, False, (1, 1))
    same = prefer(("He", "He"), ("He goes.",))
    assert (same.winner, same.same) == (None, True)
    assert prefer(("", ""), ("a",)).scores == (0, 0)


def answered(index: int, *texts: str) -> Answered:
    first, second = texts
    return Answered(index, f"Fix: {index}", (first, second), (first, second), ("abcd",))


def test_the_pairs_and_their_report(tmp_path: Path) -> None:
    folder = PairsFolder(tmp_path / "out", {"seed": 0}, resume=False, overwrite=False)
    folder.write_shard(1, Shard((answered(2, "abcd", "ab"), answered(0, "", "abc")), 1.0, 10, 1))
    folder.write_shard(0, Shard((answered(3, "abc", "abd"), answered(1, "x", "x")), 3.0, 30, 0))
    report = folder.finish(2, asked=9, temperatures=(1.0, 0.5), settings={"seed": 0})
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert rows == [
        {"prompt": "Fix: 0", "chosen": "abc", "rejected": "", "score_chosen": 0.75, "score_rejected": 0.0},
        {"prompt": "Fix: 2", "chosen": "abcd", "rejected": "ab", "score_chosen": 1.0, "score_rejected": 0.5},
    ]
    assert (report.asked, report.prompts, report.pairs, report.ties, report.same) == (9, 4, 2, 1, 1)
    assert report.wins == (1, 1)
    assert (report.distance_chosen, report.distance_rejected) == (0.5, 3.0)
    assert report.distances == ((4 + 4 + 0 + 1) / 4, (1 + 4 + 2 + 1) / 4)
    assert (report.seconds, report.new_tokens, report.tokens_per_second, report.cut) == (4.0, 40, 10.0, 1)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pairs"] == 2


def test_no_pair_at_all_says_what_to_raise(tmp_path: Path) -> None:
    folder = PairsFolder(tmp_path / "out", {}, resume=False, overwrite=False)
    folder.write_shard(0, Shard((answered(0, "a", "a"), answered(1, "ab", "cd")), 1.0, 4, 0))
    with pytest.raises(DataError, match=r"none of 2 prompts gave a pair.*Raise a temperature"):
        folder.finish(1, asked=2, temperatures=(0.5, 0.0), settings={})
    assert not (tmp_path / "out" / "pairs.jsonl").exists()


def test_nothing_there_is_overwritten_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    PairsFolder(out, {"seed": 0}, resume=False, overwrite=False).write_shard(0, Shard((), 0.0, 0, 0))
    with pytest.raises(OutputError, match=r"contains pairs \(unfinished\)"):
        PairsFolder(out, {"seed": 0}, resume=False, overwrite=False)
    with pytest.raises(OutputError, match="seed: 0 there, 1 here"):
        PairsFolder(out, {"seed": 1}, resume=True, overwrite=False)
    assert PairsFolder(out, {"seed": 0}, resume=True, overwrite=False).has_shard(0)
    assert not PairsFolder(out, {"seed": 1}, resume=False, overwrite=True).has_shard(0)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(OutputError, match="something other"):
        PairsFolder(tmp_path / "else", {}, resume=False, overwrite=True)
    assert (tmp_path / "else" / "file").exists()


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = PairsFolder(tmp_path / "out", {}, resume=False, overwrite=False)
    (tmp_path / "out" / "samples" / "00000.json").write_text('{"answered": [')
    with pytest.raises(CheckpointError, match=r"00000\.json"):
        folder.finish(1, asked=1, temperatures=(1.0, 0.5), settings={})
