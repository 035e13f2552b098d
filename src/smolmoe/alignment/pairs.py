"""Preference pairs: the one of two answers to a prompt that is nearer to a reference is preferred."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smolmoe.core.files import write_json, write_text
from smolmoe.core.json_text import read_json
from smolmoe.core.run_folder import begin_folder
from smolmoe.errors import CheckpointError, DataError

PAIRS = "pairs.jsonl"
REPORT = "report.json"
ASKED = "run.json"  # the request: a resumed run must have the same
SAMPLES = "samples"  # one file per shard of prompts, written atomically
WRITTEN = (PAIRS, REPORT, ASKED, SAMPLES)


@dataclass(frozen=True)
class Preference:
    """How two answers to one prompt compare.

    Attributes:
        distances: of each answer to its nearest reference, in characters inserted, deleted or replaced.
        scores: 1 - distance / the longest of all these texts, for each answer; 1 is a reference itself.
        winner: index of the nearer answer; None if neither is.
        same: whether the answers are equal.
    """

    distances: tuple[int, int]
    scores: tuple[float, float]
    winner: int | None
    same: bool


def prefer(answers: Sequence[str], references: Sequence[str]) -> Preference:
    """Compare two answers by their edit distance to the nearest reference."""
    distances = [min(edit_distance(answer, reference) for reference in references) for answer in answers]
    longest = max(map(len, (*answers, *references)))
    scores = [1 - distance / longest if longest else 1.0 for distance in distances]
    winner = None if distances[0] == distances[1] else distances.index(min(distances))
    return Preference((distances[0], distances[1]), (scores[0], scores[1]), winner, same=answers[0] == answers[1])


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters.

    A column of the table is two integers of len(a) bits, for its rises and its falls (Myers, 1999), so that a character
    of `b` costs a dozen integer operations.
    """
    if not a or not b:
        return len(a) + len(b)
    where: dict[str, int] = {}
    for at, character in enumerate(a):
        where[character] = where.get(character, 0) | 1 << at
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = full, 0, len(a)
    for character in b:
        match = where.get(character, 0)
        diagonal = (((match & rises) + rises) ^ rises) | match | falls
        right_rises = falls | (full & ~(diagonal | rises))
        right_falls = diagonal & rises
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = (right_rises << 1 | 1) & full
        right_falls = right_falls << 1 & full
        rises = right_falls | (full & ~(diagonal | right_rises))
        falls = right_rises & diagonal
    return distance


@dataclass(frozen=True)
class Answered:
    """A prompt with its two answers.

    Attributes:
        index: of the row in its file, from 0.
        prompt, answers: as in the file of pairs, texts or messages.
        texts: the answers as plain texts.
        references: to compare them with.
    """

    index: int
    prompt: Any
    answers: tuple[Any, Any]
    texts: tuple[str, str]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """The answers to a run of prompts.

    Attributes:
        answered: in any order.
        seconds, new_tokens, cut: of the sampling; `cut` answers were truncated.
    """

    answered: tuple[Answered, ...]
    seconds: float
    new_tokens: int
    cut: int


@dataclass(frozen=True)
class PairsReport:
    """The outcome of the prompts.

    Attributes:
        asked, prompts: requested and answered prompts; the data may have fewer than requested.
        pairs, ties, same: prompts that gave a pair; with different answers at equal distances; with equal answers.
        wins: number of preferred answers of each temperature.
        distance_chosen, distance_rejected: means over the pairs, in characters.
        distances: means over all prompts, of each temperature.
        seconds, new_tokens, cut: of the sampling, over all runs that it took.
        settings: that determine the samples, hashes included.
        sha256: of the file of pairs.
    """

    asked: int
    prompts: int
    pairs: int
    ties: int
    same: int
    temperatures: tuple[float, float]
    wins: tuple[int, int]
    distance_chosen: float
    distance_rejected: float
    distances: tuple[float, float]
    seconds: float
    new_tokens: int
    tokens_per_second: float
    cut: int
    settings: dict[str, Any]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class PairsFolder:
    """The folder of a run of pairs: its request, its shards, and its result."""

    def __init__(self, path: Path, asked: dict[str, Any], *, resume: bool, overwrite: bool):
        """Open a folder for a request; existing content is kept unless `overwrite` is set.

        Raises:
            OutputError: it contains pairs or something else, or pairs of another request.
        """
        self.path = path
        begin_folder(
            path,
            asked,
            what="pairs",
            record=ASKED,
            made=(SAMPLES, PAIRS, REPORT),
            finished=REPORT,
            resume=resume,
            overwrite=overwrite,
        )
        (path / SAMPLES).mkdir(exist_ok=True)

    def has_shard(self, number: int) -> bool:
        return self._shard(number).is_file()

    def write_shard(self, number: int, shard: Shard) -> None:
        write_json(self._shard(number), asdict(shard))

    def shards(self, count: int) -> Iterator[Shard]:
        """The shards, in order.

        Raises:
            CheckpointError: one cannot be read.
        """
        for number in range(count):
            try:
                values = read_json(self._shard(number))
                answered = [Answered(**row | _as_tuples(row)) for row in values.pop("answered")]
                seconds, new_tokens, cut = float(values["seconds"]), int(values["new_tokens"]), int(values["cut"])
                yield Shard(tuple(answered), seconds, new_tokens, cut)
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise CheckpointError(
                    f"the samples cannot be read: {error}.",
                    field="out",
                    value=str(self._shard(number)),
                    fix="Remove the file and resume.",
                ) from error

    def _shard(self, number: int) -> Path:
        return self.path / SAMPLES / f"{number:05d}.json"

    def finish(
        self, count: int, *, asked: int, temperatures: tuple[float, float], settings: dict[str, Any]
    ) -> PairsReport:
        """Compare the answers of all shards, and write the pairs, in the rows' order, and the report.

        Raises:
            DataError: no prompt gave a pair; the samples are kept.
        """
        shards = list(self.shards(count))
        answered = sorted((one for shard in shards for one in shard.answered), key=lambda one: one.index)
        compared = [prefer(one.texts, one.references) for one in answered]
        pairs = [_pair(*both) for both in zip(answered, compared, strict=True) if both[1].winner is not None]
        if not pairs:
            raise DataError(
                f"none of {len(answered)} prompts gave a pair: both answers are always equally far from the reference.",
                field="temperatures",
                value=",".join(map(str, temperatures)),
                fix="Raise a temperature or `prompts`, or `max_new_tokens` if all answers are truncated.",
            )
        report = _report(compared, shards, asked, temperatures, settings, self._write(pairs))
        write_json(self.path / REPORT, report.to_json())
        return report

    def _write(self, pairs: Sequence[dict[str, Any]]) -> str:
        text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        write_text(self.path / PAIRS, text)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _as_tuples(row: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(row[name]) for name in ("answers", "texts", "references")}


def _pair(one: Answered, preference: Preference) -> dict[str, Any]:
    """A row in the columns that TRL's preference trainers take."""
    won = preference.winner or 0
    return {
        "prompt": one.prompt,
        "chosen": one.answers[won],
        "rejected": one.answers[1 - won],
        "score_chosen": round(preference.scores[won], 6),
        "score_rejected": round(preference.scores[1 - won], 6),
    }


def _report(
    compared: Sequence[Preference],
    shards: Sequence[Shard],
    asked: int,
    temperatures: tuple[float, float],
    settings: dict[str, Any],
    sha256: str,
) -> PairsReport:
    won = [preference for preference in compared if preference.winner is not None]
    same = sum(preference.same for preference in compared)
    seconds = sum(shard.seconds for shard in shards)
    new_tokens = sum(shard.new_tokens for shard in shards)
    return PairsReport(
        asked=asked,
        prompts=len(compared),
        pairs=len(won),
        ties=len(compared) - len(won) - same,
        same=same,
        temperatures=temperatures,
        wins=(sum(one.winner == 0 for one in won), sum(one.winner == 1 for one in won)),
        distance_chosen=_mean([min(one.distances) for one in won]),
        distance_rejected=_mean([max(one.distances) for one in won]),
        distances=(_mean([one.distances[0] for one in compared]), _mean([one.distances[1] for one in compared])),
        seconds=round(seconds, 3),
        new_tokens=new_tokens,
        tokens_per_second=round(new_tokens / seconds, 2) if seconds else 0.0,
        cut=sum(shard.cut for shard in shards),
        settings=settings,
        sha256=sha256,
    )


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
