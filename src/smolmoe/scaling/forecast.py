"""The cost of a sweep, before it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import computed_field

from smolmoe.pipeline.forecast import forecast
from smolmoe.recipe.files import merge
from smolmoe.results.base import Result
from smolmoe.scaling.plan import Plan, Start
from smolmoe.scaling.runs import points_done
from smolmoe.training.estimate import estimate


@dataclass(frozen=True)
class Cost:
    """Trainings of one kind: their number and total cost.

    Attributes:
        name: of the kind.
        runs: their number.
        steps, tokens: in total; shared steps count once.
        flops, seconds: in total, on this machine.
    """

    name: str
    runs: int
    steps: int
    tokens: int
    flops: float
    seconds: float


class SweepForecast(Result):
    """The forecast of a sweep.

    Attributes:
        out: its folder.
        budgets: tokens of each, in whole steps.
        schedule: how the budgets' trainings relate, in a sentence.
        costs: the starts, the shared parts and the budgets.
        flops_unshared: FLOPs if every budget were a separate training; more than `flops` if they share.
        done, points: budgets that are trained already, of all.
    """

    kind: Literal["sweep forecast"] = "sweep forecast"
    out: str
    budgets: tuple[int, ...]
    schedule: str
    costs: tuple[Cost, ...]
    flops_unshared: float
    done: int
    points: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens(self) -> int:
        return sum(cost.tokens for cost in self.costs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.costs)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)


def forecast_sweep(plan: Plan) -> SweepForecast:
    """The cost of a plan, from configs and file headers; nothing is trained, no weight is read.

    Raises:
        SmolmoeError: as the trainings, for errors that show before they start.
    """
    costs: list[Cost] = []
    unshared = 0.0
    for start in plan.starts:
        before, step = _parts(plan, start)
        costs += before
        costs += [
            Cost(f"{start.name}: {name}", runs, steps, steps * plan.step_tokens, steps * step[0], steps * step[1])
            for name, runs, steps in _counts(plan)
        ]
        unshared += sum(cost.flops for cost in before) + sum(plan.steps) * len(plan.request.seeds) * step[0]
    return SweepForecast(
        out=str(plan.request.out),
        budgets=tuple(steps * plan.step_tokens for steps in plan.steps),
        schedule=plan.rate.text,
        costs=tuple(costs),
        flops_unshared=unshared,
        done=points_done(plan),
        points=len(plan.starts) * len(plan.request.seeds) * len(plan.steps),
    )


def _counts(plan: Plan) -> list[tuple[str, int, int]]:
    """Name, number and steps of the shared and the separate parts of the budgets, over all seeds."""
    seeds, steps, rate = len(plan.request.seeds), plan.steps, plan.rate
    if rate.kind == "trunk":
        shared = rate.branches_at(steps[-1])
        own = sum(map(rate.decay_steps, steps))
        return [("shared at constant rate", seeds, seeds * shared), ("decays", seeds * len(steps), seeds * own)]
    if rate.kind == "constant":
        return [("one training", seeds, seeds * steps[-1])]
    return [("budgets", seeds * len(steps), seeds * sum(steps))]


def _parts(plan: Plan, start: Start) -> tuple[list[Cost], tuple[float, float]]:
    """The costs before the budgets, and the FLOPs and seconds of one of their steps."""
    largest = plan.steps[-1]
    if start.pipeline is None:
        found = estimate(plan.recipe(start, plan.request.seeds[0], largest, plan.request.out))
        return [], (found.flops / largest, found.seconds / largest)
    *before, varied = start.pipeline.stages
    trainer = {"trainer": {**plan.rate.trainer(largest), "num_train_epochs": None}}
    varied = varied.model_copy(update={"train": merge(varied.train or {}, trainer)})
    *stages, last = forecast(start.pipeline.model_copy(update={"stages": (*before, varied)}))
    costs = [
        Cost(f"{start.name}: {stage.name}", 1, cost.steps, cost.tokens, cost.flops, cost.seconds)
        for stage in stages
        if (cost := stage.costs) is not None
    ]
    assert last.costs is not None  # it is a training
    return costs, (last.costs.flops / largest, last.costs.seconds / largest)
