"""Sweeps: what budgets share changes nothing, what is done stays, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.test_run import pipeline, trained, upcycle
from tests.training.runs import dense_folder, recipe, trainer

from smolmoe.core.json_text import read_rows
from smolmoe.errors import OutputError, RequestError
from smolmoe.recipe import PipelineRecipe, parse
from smolmoe.recipe.sweep import SweepRecipe
from smolmoe.results.scaling_law import Sweep, read_sweep
from smolmoe.scaling.forecast import forecast_sweep
from smolmoe.scaling.plan import Plan, make_plan
from smolmoe.scaling.run import FIGURE, sweep
from smolmoe.scaling.runs import METRICS
from smolmoe.training.run import train

STEP = 128  # tokens: 4 blocks of 32
WSD = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 1}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return dense_folder(tmp_path / "dense")


def values(folder: Path, model: Path, **trainer_values: Any) -> dict[str, Any]:
    return recipe(folder, model, trainer=trainer(**trainer_values))


def request(folder: Path, *steps: int, **options: Any) -> SweepRecipe:
    tokens = tuple(count * STEP for count in steps)
    return parse(SweepRecipe, {"tokens": tokens, "out": str(folder / "sweep"), **options})


def go(what: dict[str, Any], asked: SweepRecipe, **options: Any) -> Sweep:
    return sweep("tiny", what, asked, **options)


def plan(what: dict[str, Any], asked: SweepRecipe) -> Plan:
    return make_plan("tiny", what, asked)


def losses(found: Sweep) -> list[float]:
    return [point.loss for curve in found.curves for point in curve.points]


def documents(run: Path) -> Any:
    return json.loads((run / "held_out.json").read_text(encoding="utf-8"))


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}


# -- trainings ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
def test_a_budget_that_shares_a_trunk_is_the_training_of_that_length(tmp_path: Path, dense: Path) -> None:
    what, asked = values(tmp_path, dense, **WSD), request(tmp_path, 4, 20)
    found = go(what, asked)
    whole = plan(what, asked)
    alone = train(whole.recipe(whole.starts[0], 0, 20, tmp_path / "alone"))
    branch = tmp_path / "sweep" / found.curves[0].points[1].run
    assert documents(branch) == documents(alone.out)
    rates = {row["step"]: row["learning_rate"] for row in read_rows(alone.out / METRICS) if row["kind"] == "window"}
    assert rates[16] == 1e-2  # the trunk's
    assert rates[20] < 0.3e-2
    assert [row["step"] for row in read_rows(branch / METRICS) if row["kind"] == "step"] == [17, 18, 19, 20]
    # What is there is not trained again, and a further budget goes on from the longest trunk.
    before = written(tmp_path / "sweep")
    more = go(what, request(tmp_path, 4, 20, 30))
    after = written(tmp_path / "sweep")
    assert {path: after[path] for path in before} == before
    assert losses(more)[:2] == losses(found)
    trunk = tmp_path / "sweep" / "seed-0" / f"trunk-{24 * STEP}"
    assert min(row["step"] for row in read_rows(trunk / METRICS)) == 17
    assert read_sweep(tmp_path / "sweep") == more
    assert (tmp_path / "sweep" / FIGURE).stat().st_size > 10_000


class Stopped(BaseException):
    """As a user's Ctrl-C."""


def test_a_sweep_that_was_stopped_gives_the_same(tmp_path: Path, dense: Path) -> None:
    what = values(tmp_path, dense, **WSD, save_steps=2)
    whole = go(what, request(tmp_path, 4, 24, out=str(tmp_path / "whole")))

    def stop(title: str, done: int, total: int, detail: str = "") -> None:
        if "3,072 tokens, the shared part: Training" in title and done == 17:
            raise Stopped

    with pytest.raises(Stopped):
        go(what, request(tmp_path, 4, 24), report=stop)
    told: list[str] = []
    again = go(
        what, request(tmp_path, 4, 24), report=lambda title, done, total, detail="": told.append(f"{title} {done}")
    )
    assert losses(again) == losses(whole)
    assert "tiny, seed 0, 3,072 tokens, the shared part: Training 16" in told, "it did not go on at step 16"


def test_at_a_constant_rate_each_budget_is_a_point_of_one_training(tmp_path: Path, dense: Path) -> None:
    what = values(tmp_path, dense, lr_scheduler_type="constant")
    found = go(what, request(tmp_path, 3, 6))
    alone = train(recipe(tmp_path, dense, trainer=trainer(lr_scheduler_type="constant"), out=str(tmp_path / "alone")))
    assert found.curves[0].points[1].loss == alone.summary["held_out"]["loss"]
    assert found.curves[0].law is None
    assert found.curves[0].reason is not None
    assert "at least 3 budgets" in found.curves[0].reason
    assert any("No budget had a learning-rate decay" in warning for warning in found.warnings)


def test_a_schedule_that_ends_is_run_whole_for_each_budget(tmp_path: Path, dense: Path) -> None:
    found = go(values(tmp_path, dense, lr_scheduler_type="cosine"), request(tmp_path, 3, 6))
    for point in found.curves[0].points:
        rows = read_rows(tmp_path / "sweep" / point.run / METRICS)
        assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, point.steps + 1))
    with pytest.raises(OutputError, match="learning_rate"):
        go(values(tmp_path, dense, lr_scheduler_type="cosine", learning_rate=1e-3), request(tmp_path, 3, 6))


@pytest.mark.slow
def test_a_pipeline_shares_one_start_and_varies_the_dense_tokens_too(tmp_path: Path) -> None:
    what = pipeline(tmp_path, upcycle(), trained("on", "{moe}", data={"skip": "{dense.blocks}"}))
    found = go(what, request(tmp_path, 1, 2, 3, dense_tokens=(2 * STEP, 4 * STEP)))
    assert [curve.dense_tokens for curve in found.curves] == [2 * STEP, 4 * STEP]
    assert found.joint is not None
    assert found.curves[0].start_loss != found.curves[1].start_loss
    for curve, steps in zip(found.curves, (2, 4), strict=True):
        folder = tmp_path / "sweep" / f"dense-{steps * STEP}"
        assert json.loads((folder / "start" / "dense" / "summary.json").read_text())["steps"] == steps
        run = json.loads((tmp_path / "sweep" / curve.points[0].run / "run.json").read_text())
        assert run["recipe"]["data"]["skip"] == steps * 4
        assert run["recipe"]["model"]["path"] == str(folder / "start" / "moe")


# -- plans -------------------------------------------------------------------------------------------------------------


def test_seeds_read_other_text_in_another_order(tmp_path: Path, dense: Path) -> None:
    what = values(tmp_path, dense)
    made = plan(what, request(tmp_path, 3, 6, seeds=(0, 2)))
    first, other = (made.recipe(made.starts[0], seed, 6, tmp_path / "x") for seed in (0, 2))
    assert (first.data.seed, other.data.seed, other.seed) == (0, 2, 2)
    what["data"]["skip"] = 40
    made = plan(what, request(tmp_path, 3, 6, seeds=(0, 2)))
    other = made.recipe(made.starts[0], 2, 6, tmp_path / "x")
    assert (other.data.seed, other.data.skip) == (0, 40 + 2 * 6 * 4)


def test_only_what_the_varied_stage_builds_on_is_run(tmp_path: Path) -> None:
    what = pipeline(tmp_path, upcycle(), trained("side", "{dense}"), trained("on", "{moe}"))
    start = plan(what, request(tmp_path, 3, 6)).starts[0]
    assert start.before is not None
    assert [stage.name for stage in start.before.stages] == ["dense", "moe"]
    chosen = plan(what, request(tmp_path, 3, 6, stage="dense"))
    assert chosen.starts[0].before is None


@pytest.mark.parametrize(
    ("steps", "trainer_values", "options", "said"),
    [
        ((3, 3), {}, {}, "twice"),
        ((0.2,), {}, {}, "less than one step"),
        ((3, 3.1), {}, {}, "same number of steps"),
        ((1, 20), WSD, {}, "too short"),
        ((3, 6), {}, {"stage": "moe"}, "one training, not a pipeline"),
        ((3, 6), {}, {"dense_tokens": (STEP,)}, "one training, not a pipeline"),
        ((3, 6), {}, {"until": STEP}, "at least to the largest"),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    tmp_path: Path, steps: tuple[float, ...], trainer_values: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    tokens = [int(count * STEP) for count in steps]

    def ask() -> None:
        asked = parse(SweepRecipe, {"tokens": tokens, "out": str(tmp_path / "sweep"), **options})
        plan(values(tmp_path, tmp_path, **trainer_values), asked)

    with pytest.raises(RequestError, match=said):
        ask()


def test_held_out_text_must_be_the_same_for_all(tmp_path: Path) -> None:
    other = trained("on", "{moe}", data={"held_out": 0.1})
    with pytest.raises(RequestError, match="stage dense holds out other text"):
        plan(pipeline(tmp_path, upcycle(), other), request(tmp_path, 3, 6))
    streamed = {"sources": [{"path": "owner/name", "streaming": True}]}
    with pytest.raises(RequestError, match="hold out more"):
        plan(recipe(tmp_path, tmp_path, data=streamed), request(tmp_path, 300, 600))


def test_stages_that_are_none_are_refused(tmp_path: Path) -> None:
    what = pipeline(tmp_path, upcycle(), trained("on", "{moe}"))
    with pytest.raises(RequestError, match="There are dense, on"):
        plan(what, request(tmp_path, 3, 6, stage="moe"))
    with pytest.raises(RequestError, match="conversion"):
        plan(what, request(tmp_path, 3, 6, stage="dense", dense_tokens=(STEP,)))


def test_the_forecast_counts_what_is_shared_once(tmp_path: Path, dense: Path) -> None:
    asked = request(tmp_path, 10, 20, 40, seeds=(0, 1))
    found = forecast_sweep(plan(values(tmp_path, dense, **WSD), asked))
    assert [(cost.runs, cost.steps) for cost in found.costs] == [(2, 2 * 32), (6, 2 * (2 + 4 + 8))]
    assert found.flops_unshared == pytest.approx(found.flops * (2 * 70) / (2 * 46))
    assert (found.done, found.points) == (0, 6)
    own = forecast_sweep(plan(values(tmp_path, dense), asked))
    assert own.flops == pytest.approx(found.flops_unshared)
    what = pipeline(tmp_path, upcycle(), trained("on", "{moe}"))
    staged = forecast_sweep(plan(what, request(tmp_path, 3, 6)))
    assert [cost.steps for cost in staged.costs] == [parse(PipelineRecipe, what).defaults["trainer"]["max_steps"], 9]
