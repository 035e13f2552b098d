"""Values of a recipe that change with the steps of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import PlainSerializer, PlainValidator

_FORMS = "must be a number, {step: value, ...} or {linear: {step: value, ...}}"


@dataclass(frozen=True)
class Schedule:
    """A number by optimiser step, counted from 0.

    In a recipe `{0: 0.01, 300: 0.001}`: each value holds from its step to the next one's. `{linear: {0: 1, 200: 0}}`:
    values are interpolated between the steps. The last value holds to the end of the training.

    Attributes:
        points: (step, value) in ascending order, the first at step 0.
        linear: whether values between two points are interpolated.
    """

    points: tuple[tuple[int, float], ...]
    linear: bool = False

    def __bool__(self) -> bool:
        """Whether the value is ever other than 0."""
        return any(value for _, value in self.points)

    @property
    def last(self) -> float:
        return self.points[-1][1]

    @property
    def settled(self) -> int:
        """The first step from which the value no longer changes."""
        return self.points[-1][0]

    def at(self, step: int) -> float:
        """The value of this step."""
        for (start, value), (end, following) in pairwise(self.points):
            if start <= step < end:
                return value + (following - value) * (step - start) / (end - start) if self.linear else value
        return self.last

    def whole_values(self) -> set[int]:
        """All values that a schedule of whole numbers takes."""
        found = {round(value) for _, value in self.points}
        for (_, a), (_, b) in pairwise(self.points) if self.linear else ():
            found |= {*range(*sorted((round(a), round(b))))}
        return found

    def plain(self) -> dict[Any, Any]:
        """The form in a recipe."""
        points = dict(self.points)
        return {"linear": points} if self.linear else points


def schedule_of(value: float | Schedule) -> Schedule:
    """A recipe's value as a schedule; a number is the same in all steps, and true is 1."""
    return value if isinstance(value, Schedule) else Schedule(((0, float(value)),))


def scheduled(check: Callable[[float], str | None]) -> tuple[PlainValidator, PlainSerializer]:
    """Metadata for a recipe's field `Annotated[float | Schedule, *scheduled(check)]`.

    Args:
        check: returns what a value must be, if it is not that.
    """

    def validate(given: Any) -> Any:
        value = _parse(given)
        for number in [number for _, number in value.points] if isinstance(value, Schedule) else [value]:
            problem = None if isinstance(number, bool) else check(number)
            if problem is not None:
                raise ValueError(problem)
        return value

    return PlainValidator(validate), PlainSerializer(lambda value: getattr(value, "plain", lambda: value)())


def at_least_zero(value: float) -> str | None:
    """For `scheduled`."""
    return None if value >= 0 else "must be at least 0"


def whole(value: float) -> str | None:
    """For `scheduled`."""
    return None if value == int(value) and value >= 1 else "must be 1, 2, 3, ..."


def _parse(given: Any) -> float | Schedule:
    if isinstance(given, Schedule | bool):
        return given
    if not isinstance(given, Mapping):
        return _number(given)
    linear = [*given] == ["linear"]
    points = given["linear"] if linear else given
    if not isinstance(points, Mapping) or not points:
        raise ValueError(_FORMS)
    found = tuple(sorted((_step(step), _number(value)) for step, value in points.items()))
    if found[0][0] != 0 or len(dict(found)) < len(found):
        raise ValueError("must have a value for step 0, and one for each step")
    return Schedule(found, linear)


def _step(given: Any) -> int:
    if isinstance(given, str) and given.isdecimal():  # JSON has no other keys
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ValueError(f"{given!r} is not a step: {_FORMS}")
    return given


def _number(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise ValueError(_FORMS)
    return given
