"""Local task files of lm-evaluation-harness, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import dense_llama, random_moe, save, tiny_tokenizer
from tests.training.runs import write_text

from smolmoe.errors import DataError, RequestError
from smolmoe.evaluation.compare.lm_eval import load_tasks, mean_scores, score_tasks
from smolmoe.evaluation.compare.run import compare
from smolmoe.results.comparison import Score

pytest.importorskip("lm_eval")

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
CHOICES = [" seven", " four", " a", " everyone can"]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve questions, and a task file that names them by a path of its own folder."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "task"
    folder.mkdir()
    rows = [{"question": f"The sum of {n} is", "choices": CHOICES, "answer": n % 4} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.format(name="sums"))
    return folder / "sums.yaml"


def favourite(model: torch.nn.Module, question: str) -> int:
    """The choice that the model finds likeliest, by hand."""
    tokenizer = tiny_tokenizer()
    start = tokenizer(question)["input_ids"]
    scores = []
    for choice in CHOICES:
        # The harness puts a space before a choice, and so there are two.
        whole = torch.tensor([tokenizer(f"{question} {choice}")["input_ids"]])
        logits = model(input_ids=whole).logits.log_softmax(dim=-1)
        chosen = logits[0, :-1].gather(1, whole[0, 1:, None])
        scores.append(float(chosen[len(start) - 1 :].sum()))
    return scores.index(max(scores))


def test_scores_are_those_computed_by_hand(task: Path) -> None:
    for model in (dense_llama(), random_moe("mixtral")):
        with torch.inference_mode():
            right = [favourite(model, f"The sum of {n} is") == n % 4 for n in range(12)]
        state = torch.get_rng_state()
        score = score_tasks(model, tiny_tokenizer(), load_tasks(task))["sums"]["acc"]
        assert torch.equal(torch.get_rng_state(), state)  # nothing global is seeded
        assert score.value == pytest.approx(sum(right) / 12)
        share = score.value * (1 - score.value)
        assert score.stderr == pytest.approx((share / 11) ** 0.5)
        assert score.higher_is_better


def test_compare_with_tasks_and_seeds(task: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (task.parent / "again.yaml").write_text(TASK.format(name="again"))
    models = {
        "base": save(dense_llama(), tmp_path / "a"),
        "moe": [save(random_moe("mixtral", seed=seed), tmp_path / f"b{seed}") for seed in (0, 1)],
    }
    data = write_text(tmp_path / "text.jsonl", 6)
    capfd.readouterr()
    found = compare(models, data, speed=False, tasks=task.parent, out=tmp_path / "out")
    moe = found.models[1]
    assert set(moe.tasks) == {"sums", "again"}
    score = moe.tasks["sums"]["acc"]
    assert len(score.values) == 2
    assert score.value == pytest.approx(sum(score.values) / 2)
    assert "sums: acc" in found.winners
    assert any(sentence.startswith("Task sums: acc:") for sentence in found.verdict)
    assert "| sums: acc |" in (tmp_path / "out" / "table.md").read_text()
    assert "it/s" not in capfd.readouterr().err


def test_seeds_become_their_mean() -> None:
    seeds = [{"sums": {"acc": Score(value, value / 10, False, (value,))}} for value in (0.2, 0.4, 0.9)]
    assert mean_scores(seeds)["sums"]["acc"] == Score(pytest.approx(0.5), 0.02, False, (0.2, 0.4, 0.9))


def test_files_that_are_no_tasks(task: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_tasks(tmp_path / "gone.yaml")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="there is no task"):
        load_tasks(tmp_path / "none")
    (task.parent / "rows.jsonl").unlink()
    with pytest.raises(DataError, match="the task cannot be loaded"):
        load_tasks(task)
    task.write_text("just: this")
    with pytest.raises(DataError, match="the task cannot be loaded"):
        load_tasks(task)


def test_without_the_harness(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smolmoe.evaluation.compare.lm_eval.PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(RequestError, match=r"smolmoe\[eval\]"):
        load_tasks(task)
