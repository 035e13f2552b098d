"""A model's corrections beside copying and beside people, judged row by row and together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import dense_llama, edit_tensors, save, tiny_tokenizer

from smolmoe.data.prompts import CorrectionPrompt, CorrectionRow, prompt_ids, read_corrections
from smolmoe.errors import CheckpointError, DataError, OutputError, SourceError
from smolmoe.evaluation.correction import judge, score_checkpoint, score_corrections
from smolmoe.evaluation.text_metrics import METRICS, Corrected, metrics_of, row_statistics
from smolmoe.inference.sampling import answer_text


def row(source: str, *references: str) -> CorrectionRow:
    return CorrectionRow(f"Fix: {source}", source, references, "line 1")


ROWS = [row("the sum are seven now", "the sum is seven now"), row("as everyone see it", "as everyone sees it")]


def test_copying_is_judged_on_the_text_without_its_instruction(shared: Path) -> None:
    rows = read_corrections(shared / "data" / "gec_jfleg_coedit_schema.jsonl", rows=60)
    scores = judge(rows, [one.source for one in rows])
    assert scores.model == scores.copy
    assert scores.copy.unchanged == 1
    assert scores.copy.metrics["bleu"].value > 60
    assert all(gap.value == gap.low == gap.high == 0 for gap in scores.difference.values())
    assert scores.not_better == METRICS
    assert scores.worse == ()


def test_people_are_judged_by_the_other_people(shared: Path) -> None:
    rows = read_corrections(shared / "data" / "gec_jfleg_coedit_schema.jsonl", rows=60)
    human = judge(rows, [one.references[0] for one in rows]).human
    assert human is not None
    several = [one for one in rows if len(one.references) > 1]
    assert human.rows == len(several) < len(rows)
    expected = []
    for one in several:
        left = [
            Corrected(one.source, text, tuple(other for other in one.references if other != text))
            for text in one.references
        ]
        expected.append(np.mean([row_statistics(each) for each in left], axis=0))
    values = dict(zip(METRICS, metrics_of(np.sum(expected, axis=0)).tolist(), strict=True))
    assert {name: found.value for name, found in human.metrics.items()} == pytest.approx(values, abs=1e-3)
    assert human.metrics["exact_match"].value == 0  # a row's references differ
    assert human.metrics["gleu"].value > judge(rows, [one.source for one in rows]).copy.metrics["gleu"].value


def test_who_corrects_all_beats_copying_and_who_ruins_all_does_not() -> None:
    rows = ROWS * 5
    perfect = judge(rows, [one.references[0] for one in rows])
    assert perfect.not_better == ()
    assert perfect.human is None
    assert perfect.model.metrics["gleu"].value == 100
    assert perfect.model.unchanged == 0
    worse = judge(rows, ["x" for _ in rows])
    assert worse.worse[0] == "bleu"
    assert set(worse.worse) <= set(worse.not_better)


def test_a_models_corrections_are_its_greedy_answers_to_the_prompts() -> None:
    model, tokenizer = dense_llama(), tiny_tokenizer()
    prompt = CorrectionPrompt("Q {prompt}\n")
    scores = score_corrections(model, tokenizer, ROWS, batch_size=2, max_new_tokens=6, prompt=prompt)
    for one, prediction in zip(ROWS, scores.predictions, strict=True):
        ids = prompt_ids(tokenizer, f"Q {one.instructed}\n")
        with torch.no_grad():
            out = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=6, do_sample=False)
        assert prediction.output == answer_text(tokenizer, ids, out[0, len(ids) :].tolist()).strip()
        assert prediction.references == one.references
    values = scores.to_json()
    assert set(values["model"]["metrics"]) == set(METRICS)
    assert values["new_tokens"] > 0
    assert values["tokens_per_second"] > 0
    json.dumps(values)


def test_sampled_scores_are_the_same_for_a_seed_and_others_for_another() -> None:
    model, tokenizer = dense_llama(), tiny_tokenizer()
    options = {"batch_size": 2, "max_new_tokens": 8, "temperature": 1.0}
    first, again, other = (score_corrections(model, tokenizer, ROWS, seed=seed, **options) for seed in (0, 0, 1))
    assert first.predictions == again.predictions != other.predictions


def test_a_checkpoint_is_scored_into_a_folder(tmp_path: Path) -> None:
    folder = save(dense_llama(), tmp_path / "model")
    options = {"batch_size": 2, "max_new_tokens": 6}
    scores = score_checkpoint(folder, ROWS, out=tmp_path / "out", **options)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [one.output for one in scores.predictions]
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["model"]["rows"] == 2
    assert written["settings"]["template"] == "{prompt}\n"
    assert written["settings"]["max_new_tokens"] == 6
    with pytest.raises(OutputError, match="contains scores"):
        score_checkpoint(folder, ROWS, out=tmp_path / "out", **options)
    score_checkpoint(folder, ROWS, out=tmp_path / "out", overwrite=True, **options)
    with pytest.raises(OutputError, match="something other than"):
        score_checkpoint(folder, ROWS, out=folder, overwrite=True, **options)


def test_bad_input_is_refused_before_the_weights_are_read(tmp_path: Path) -> None:
    bare = save(dense_llama(), tmp_path / "bare", tokenizer=False)
    with pytest.raises(SourceError, match="no tokenizer"):
        score_checkpoint(bare, ROWS, batch_size=2, max_new_tokens=6)
    folder = save(dense_llama(), tmp_path / "model")
    edit_tensors(folder, lambda tensors: tensors.popitem())
    with pytest.raises(DataError, match="exceed"):
        score_checkpoint(folder, [row("x" * 200, "y")], batch_size=2, max_new_tokens=6)
    with pytest.raises(CheckpointError):
        score_checkpoint(folder, ROWS, batch_size=2, max_new_tokens=6)
    with pytest.raises(DataError, match="no rows"):
        score_corrections(dense_llama(), tiny_tokenizer(), [], batch_size=2, max_new_tokens=6)
    with pytest.raises(DataError, match=r"line 1: \d+ tokens and 6 new ones exceed the model's 128 positions"):
        score_corrections(dense_llama(), tiny_tokenizer(), [row("x" * 200, "y")], batch_size=2, max_new_tokens=6)
