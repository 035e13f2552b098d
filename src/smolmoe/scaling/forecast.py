"""What a sweep will cost, before any of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from smolmoe.pipeline.forecast import forecast
from smolmoe.recipe.files import merge
from smolmoe.scaling.plan import Plan, Start
from smolmoe.scaling.runs import points_done

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Cost:
    """Trainings of one kind: how many, and what they cost together.

    Attributes:
        name: what they are.
        runs: how many.
        steps, tokens: of all together; what is shared counts once.
        flops, seconds: of all together, on this machine.
    """

    name: str
    runs: int
    steps: int
    tokens: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class SweepForecast:
    """What a sweep will train.

    Attributes:
        out: its folder.
        budgets: tokens of each, as they come out in whole steps.
        schedule: how the budgets' trainings relate, in a sentence.
        costs: the starts, the shared parts and the budgets.
        whole: FLOPs where every budget was a training of its own; more than `flops` where they share.
        done, points: budgets that are trained already, of all.
    """

    out: str
    budgets: tuple[int, ...]
    schedule: str
    costs: tuple[Cost, ...]
    whole: float
    done: int
    points: int

    @property
    def flops(self) -> float:
        return sum(cost.flops for cost in self.costs)

    @property
    def seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "sweep forecast",
            "out": self.out,
            "budgets": self.budgets,
            "schedule": self.schedule,
            "costs": [vars(cost) for cost in self.costs],
            "tokens": sum(cost.tokens for cost in self.costs),
            "flops": self.flops,
            "seconds": self.seconds,
            "flops_unshared": self.whole,
            "done": self.done,
            "points": self.points,
        }


def forecast_sweep(plan: Plan) -> SweepForecast:
    """The cost of a plan, from configs and file headers; nothing is trained, no weight is read.

    Raises:
        SmolmoeError: as the trainings would, for what can be seen beforehand.
    """
    costs: list[Cost] = []
    whole = 0.0
    for start in plan.starts:
        before, step = _parts(plan, start)
        costs += before
        costs += [
            Cost(f"{start.name}: {name}", runs, steps, steps * plan.step_tokens, steps * step[0], steps * step[1])
            for name, runs, steps in _counts(plan)
        ]
        whole += sum(cost.flops for cost in before) + sum(plan.steps) * len(plan.request.seeds) * step[0]
    return SweepForecast(
        out=str(plan.request.out),
        budgets=tuple(steps * plan.step_tokens for steps in plan.steps),
        schedule=plan.rate.text,
        costs=tuple(costs),
        whole=whole,
        done=points_done(plan),
        points=len(plan.starts) * len(plan.request.seeds) * len(plan.steps),
    )


def _counts(plan: Plan) -> list[tuple[str, int, int]]:
    """Name, number and steps of the shared parts and of the budgets' own, over all seeds."""
    seeds, steps, rate = len(plan.request.seeds), plan.steps, plan.rate
    if rate.kind == "trunk":
        shared = rate.branches_at(steps[-1])
        own = sum(map(rate.decay_steps, steps))
        return [("shared at constant rate", seeds, seeds * shared), ("decays", seeds * len(steps), seeds * own)]
    if rate.kind == "constant":
        return [("one training", seeds, seeds * steps[-1])]
    return [("budgets", seeds * len(steps), seeds * sum(steps))]


def _parts(plan: Plan, start: Start) -> tuple[list[Cost], tuple[float, float]]:
    """What comes before the budgets, and the FLOPs and seconds of a step of theirs."""
    largest = plan.steps[-1]
    if start.pipeline is None:
        from smolmoe.training.estimate import estimate

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
