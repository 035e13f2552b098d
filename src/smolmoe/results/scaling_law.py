"""What a sweep found, as it is written to `sweep.json` and read from it. Losses are nats a token, D training tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smolmoe.core.statistics import Interval
from smolmoe.results.base import Result

FILE = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One training: a budget and a seed.

    Attributes:
        tokens, steps, seed: of the training.
        loss: on the held-out text at its end; `by_domain` the same by domain.
        flops: of the whole training, as if it had shared nothing.
        seconds: spent on it alone; of one that shares a trunk, from where it left that.
        run: its folder, from the sweep's.
    """

    tokens: int
    steps: int
    seed: int
    loss: float
    by_domain: dict[str, float]
    flops: float
    seconds: float
    run: str


@dataclass(frozen=True)
class Gain:
    """What going from one number of tokens to another takes off the loss.

    Attributes:
        drop: L(begin) - L(end): positive where more tokens are better.
        reach: "measured", "extrapolated" (`end` is past the largest budget), or "far" (past ten times it).
    """

    begin: int
    end: int
    drop: Interval
    reach: str


@dataclass(frozen=True)
class Prediction:
    """A loss at one number of tokens; `reach` as of `Gain`."""

    tokens: int
    loss: Interval
    reach: str


@dataclass(frozen=True)
class Law:
    """L(D) = offset + scale (D + start_tokens)^-exponent.

    Attributes:
        offset: E, what no amount of this text takes away.
        scale: A, in nats tokens^exponent.
        exponent: alpha; the high end of its interval may be the largest one that was tried.
        start_tokens: D0, tokens of the warm start that count as if they were of this training; 0 where they do not.
        residual: root mean square of the relative residuals of the budgets' mean losses.
        identified: whether the points tell offset and exponent; if not, `notes` says why and only the losses within
            the measured range are to be used.
        notes: what to know of the fit.
    """

    offset: Interval
    scale: Interval
    exponent: Interval
    start_tokens: int
    residual: float
    identified: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Fold:
    """How many times the data; `value` and `low` are None where no amount is enough, `high` where it has no end."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Need:
    """How much more data than the largest budget a lower perplexity needs.

    Attributes:
        lower: share of the perplexity at the largest budget.
        nats: the same of the loss, -ln(1 - lower).
        fold: by the power of perplexity, which has no floor: the least that it may take.
        law_fold: by the fitted law with its floor; None where there is no law that the points tell.
        tokens: in all, by `fold`; None where no amount is enough.
        reach: of these tokens, as of `Gain`.
    """

    lower: float
    nats: float
    fold: Fold
    law_fold: Fold | None
    tokens: int | None
    reach: str


@dataclass(frozen=True)
class Power:
    """perplexity = scale D^-exponent, by least squares of the perplexity.

    Attributes:
        tenfold: nats that each 10x of data takes off the loss.
        tenfold_share: the same as a share of the perplexity.
        residual: root mean square of the relative residuals of the budgets' perplexities.
        needs: what 10, 25 and 50% lower perplexity needs.
    """

    exponent: Interval
    tenfold: Interval
    tenfold_share: Interval
    residual: float
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class Curve:
    """The points that share a warm start, and what was made of them.

    Attributes:
        name: of the curve.
        dense_tokens: of the dense training before the conversion, where these were varied or are known.
        start_loss: of the warm start, before its first step; None where it was not measured.
        points: by tokens, then seed.
        budgets: the mean loss of each budget's seeds, as it was measured.
        law: None where it could not be fitted; `reason` says why.
        neighbours: from each budget to the next, from the measured losses.
        tenfold: what each 10x of tokens buys, by the law.
        band: the law from the smallest budget on to where the sweep extrapolates, evenly in log D.
        power: of perplexity in tokens, and how much more data a lower perplexity needs; None of a single budget.
    """

    name: str
    dense_tokens: int | None
    start_loss: float | None
    points: tuple[Point, ...]
    budgets: tuple[Prediction, ...]
    law: Law | None
    reason: str | None
    neighbours: tuple[Gain, ...]
    tenfold: tuple[Gain, ...]
    band: tuple[Prediction, ...]
    power: Power | None = None


@dataclass(frozen=True)
class DenseExponent:
    """The exponent of D2 after D1 dense tokens: a2 - a3 ln D1."""

    dense_tokens: int
    exponent: Interval


@dataclass(frozen=True)
class JointLaw:
    """L(D1, D2) = offset + scale D1^-dense D2^(-upcycled + interaction ln D1), arXiv 2502.03009.

    Attributes:
        offset, scale, dense, upcycled, interaction: its five numbers; with a positive interaction, upcycling tokens buy
            less the longer the dense model was trained.
        exponents: of D2 after each dense budget: these do not depend on the unit of D1.
        residual, notes: as of `Law`.
        identified: whether the interval of the interaction leaves 0 out.
    """

    offset: Interval
    scale: Interval
    dense: Interval
    upcycled: Interval
    interaction: Interval
    exponents: tuple[DenseExponent, ...]
    residual: float
    identified: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """How the budgets relate to each other's trainings.

    Attributes:
        kind: "trunk": budgets share a training at constant rate and have a decay each; "constant": each budget is a
            point of one training at constant rate; "own": each budget is a training with a whole schedule of its own.
        name: `lr_scheduler_type`.
        warmup_steps: of each; below 1 a share of its steps.
        decay: share of a budget's steps in which the rate decays, of a trunk.
        text: the same in a sentence.
    """

    kind: str
    name: str
    warmup_steps: float
    decay: float | None
    text: str


@dataclass(frozen=True)
class HeldOutFacts:
    """The text that all points were measured on, the same for all."""

    documents: int
    tokens: int
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Uncertainty:
    """What the intervals are of: `level` of the `draws`, over what was resampled, and in a sentence."""

    level: float
    draws: int
    over: tuple[str, ...]
    text: str


class Sweep(Result):
    """A sweep: trainings at several budgets, and the laws through them.

    Attributes:
        recipe: as it was named; `stage` of a pipeline whose tokens were varied.
        model: what every training began from, "new" for random weights.
        training_tokens: tokens of the text to train on: budgets past it read it again.
        largest: the largest budget; `extrapolated_to` where the bands end.
        curves: one, or one for each dense budget.
        joint: the law of both, where dense tokens were varied.
        warnings: what to know before any of it is believed.
        versions, command: what made it.
    """

    kind: Literal["sweep"] = "sweep"
    recipe: str
    stage: str | None
    model: str
    schedule: Schedule
    held_out: HeldOutFacts
    training_tokens: int
    largest: int
    extrapolated_to: int
    curves: tuple[Curve, ...]
    joint: JointLaw | None
    joint_reason: str | None
    uncertainty: Uncertainty
    warnings: tuple[str, ...]
    versions: dict[str, str]
    command: str | None


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    return Sweep.read(folder / FILE)
