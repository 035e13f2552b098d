"""How well a model corrects texts, compared with leaving them unchanged and with people's corrections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smolmoe.core.checkpoint import fingerprint, open_checkpoint
from smolmoe.core.devices import pick_device
from smolmoe.core.files import growing, json_text, place, write_together
from smolmoe.core.progress import Progress
from smolmoe.core.run_folder import foreign, occupied
from smolmoe.core.statistics import Interval
from smolmoe.data.prompts import CorrectionPrompt, CorrectionRow, prompt_ids
from smolmoe.errors import DataError
from smolmoe.evaluation.text_metrics import (
    METRICS,
    Corrected,
    Floats,
    draw_rows,
    intervals,
    metrics_of,
    normalised,
    row_statistics,
)
from smolmoe.inference.sampling import answering_model, answering_tokenizer, check_room, sample_answers
from smolmoe.moe.loading import load_config

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"


@dataclass(frozen=True)
class SystemScores:
    """The metrics of one way of correcting the rows.

    Attributes:
        metrics: name -> value in percent, with its interval.
        unchanged: share of texts left unchanged, 0 to 1.
        rows: number of rows scored.
    """

    metrics: dict[str, Interval]
    unchanged: float
    rows: int


@dataclass(frozen=True)
class Prediction:
    """The model's correction of a row.

    Attributes:
        sari: of this row, in percent; rows are ranked by it.
    """

    source: str
    output: str
    references: tuple[str, ...]
    exact: bool
    sari: float


@dataclass(frozen=True)
class CorrectionScores:
    """A model's corrections of some rows, scored.

    Attributes:
        model: the model's scores.
        copy: those of the unchanged texts.
        human: those of each reference against the row's other references; None if no row has several. They are a
            lower bound, because one reference fewer is left to agree with.
        difference: metric -> the model's value minus that of copying, on the same rows.
        predictions: in the rows' order.
        new_tokens, cut, seconds: of the sampling; `cut` answers reached the limit.
    """

    model: SystemScores
    copy: SystemScores
    human: SystemScores | None
    difference: dict[str, Interval]
    predictions: tuple[Prediction, ...]
    new_tokens: int
    cut: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def worse(self) -> tuple[str, ...]:
        """The metrics by which the model is worse than copying."""
        return tuple(name for name in METRICS if self.difference[name].value < 0)

    @property
    def not_better(self) -> tuple[str, ...]:
        """The metrics by which the model does not beat copying: the difference's interval includes 0 or is below it."""
        return tuple(name for name in METRICS if self.difference[name].low <= 0)

    def to_json(self) -> dict[str, Any]:
        """Everything but the predictions."""
        values = asdict(self)
        del values["predictions"]
        return values | {"not_better": list(self.not_better), "tokens_per_second": round(self.tokens_per_second, 2)}


def score_corrections(
    model: Any,
    tokenizer: Any,
    rows: Sequence[CorrectionRow],
    *,
    batch_size: int,
    max_new_tokens: int,
    device: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    prompt: CorrectionPrompt | None = None,
    report: Progress | None = None,
) -> CorrectionScores:
    """Let the model correct each row once, and score the corrections.

    Args:
        model: a causal language model in memory.
        device: to move it to; None does not move it.
        temperature: 0 is greedy.
        seed: of the sampling and of the intervals.
        prompt: the form of the prompts; None for `CorrectionPrompt()`.

    Raises:
        RequestError: a value out of its range, or sacrebleu is not installed.
        DataError: no rows, or one that leaves no room in the model's positions.
        SourceError: a chat is requested and the tokenizer has no template.
    """
    if not rows:
        raise DataError("there are no rows to score.", field="rows", value=0)
    row_statistics(Corrected("a", "a", ("a",)))  # fails before the sampling if sacrebleu is missing
    prompts = _prompts(tokenizer, rows, prompt, max_new_tokens, model.config)
    samples = sample_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seeds=[(seed, index) for index in range(len(rows))],
        device=device,
        report=report,
    )
    outputs = [text.strip() for text in samples.texts]
    return judge(rows, outputs, new_tokens=samples.new_tokens, cut=samples.cut, seconds=samples.seconds, seed=seed)


def score_checkpoint(
    model: str | Path,
    rows: Sequence[CorrectionRow],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    prompt: CorrectionPrompt | None = None,
    **options: Any,
) -> CorrectionScores:
    """`score_corrections` of a model's folder; the prompts are tokenised before the weights are read.

    Args:
        out: folder for `scores.json` and `predictions.jsonl`.
        overwrite: replace existing ones.
        **options: as `score_corrections` takes them.

    Raises:
        SourceError: no such model, or it has no tokenizer.
        OutputError: `out` is not empty.
    """
    device = pick_device(device)
    if out is not None:
        place(out, "growing folder")
        _check_out(out, overwrite)
    checkpoint = open_checkpoint(model, field="model")
    folder, asking = checkpoint.folder, prompt or CorrectionPrompt()
    tokenizer = answering_tokenizer(folder)
    _prompts(tokenizer, rows, asking, options["max_new_tokens"], load_config(folder))
    network = answering_model(folder, device)
    scores = score_corrections(network, tokenizer, rows, prompt=asking, **options)
    if out is not None:
        said = {name: options[name] for name in sorted(options) if name != "report"}
        settings = {"model": str(model), "model_sha256": fingerprint(checkpoint), **asdict(asking), **said}
        with growing(out, lambda: _check_out(out, overwrite)):
            write_scores(out, scores, settings)
    return scores


def write_scores(out: Path, scores: CorrectionScores, settings: dict[str, Any]) -> None:
    """Write `predictions.jsonl` and `scores.json` with the settings into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) + "\n" for prediction in scores.predictions)
    found = {"settings": settings} | scores.to_json()
    write_together({out / PREDICTIONS: "".join(lines), out / SCORES: json_text(found)})


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and (not out.is_dir() or any(file.name not in (PREDICTIONS, SCORES) for file in out.iterdir())):
        raise foreign(out, "scores")
    if not overwrite and out.exists() and any(out.iterdir()):
        raise occupied(out, "scores", "Use `overwrite=True`, or name another folder.")


def _prompts(
    tokenizer: Any, rows: Sequence[CorrectionRow], prompt: CorrectionPrompt | None, max_new_tokens: int, config: Any
) -> list[list[int]]:
    """The rows' prompts as tokens, each with room for an answer."""
    asking = prompt or CorrectionPrompt()
    prompts = [prompt_ids(tokenizer, asking.ask(row.instructed), row.where) for row in rows]
    check_room(prompts, max_new_tokens, config, [row.where for row in rows])
    return prompts


def judge(
    rows: Sequence[CorrectionRow],
    outputs: Sequence[str],
    *,
    new_tokens: int = 0,
    cut: int = 0,
    seconds: float = 0.0,
    seed: int = 0,
) -> CorrectionScores:
    """Score given corrections."""
    corrected = [Corrected(row.source, text, row.references) for row, text in zip(rows, outputs, strict=True)]
    copied = [Corrected(row.source, row.source, row.references) for row in rows]
    made, left = (np.stack([row_statistics(row) for row in system]) for system in (corrected, copied))
    draws = draw_rows(len(rows), seed=seed)
    drawn_made, drawn_left = metrics_of(draws @ made), metrics_of(draws @ left)
    value_made, value_left = metrics_of(made.sum(0)), metrics_of(left.sum(0))
    sari = metrics_of(made)[:, METRICS.index("sari")]
    return CorrectionScores(
        SystemScores(intervals(value_made, drawn_made), _unchanged(corrected), len(rows)),
        SystemScores(intervals(value_left, drawn_left), 1.0, len(rows)),
        _human(rows, seed),
        intervals(value_made - value_left, drawn_made - drawn_left),
        tuple(_prediction(row, float(score)) for row, score in zip(corrected, sari, strict=True)),
        new_tokens,
        cut,
        round(seconds, 3),
    )


def _human(rows: Sequence[CorrectionRow], seed: int) -> SystemScores | None:
    """Each reference of a row against the row's others; together they count as one row."""
    held_out = [_leave_one_out(row) for row in rows if len(row.references) > 1]
    if not held_out:
        return None
    statistics: Floats = np.stack([np.mean([row_statistics(one) for one in row], axis=0) for row in held_out])
    draws = draw_rows(len(held_out), seed=seed)
    scores = intervals(metrics_of(statistics.sum(0)), metrics_of(draws @ statistics))
    return SystemScores(scores, sum(map(_unchanged, held_out)) / len(held_out), len(held_out))


def _leave_one_out(row: CorrectionRow) -> list[Corrected]:
    references = row.references
    return [Corrected(row.source, one, references[:at] + references[at + 1 :]) for at, one in enumerate(references)]


def _unchanged(rows: Sequence[Corrected]) -> float:
    return sum(normalised(row.output) == normalised(row.source) for row in rows) / len(rows)


def _prediction(row: Corrected, sari: float) -> Prediction:
    exact = normalised(row.output) in map(normalised, row.references)
    return Prediction(row.source, row.output, row.references, exact, round(sari, 2))
