"""The result of a sweep, written to `sweep.json`. Losses are in nats per token; D are training tokens."""

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
        loss: final held-out loss; `by_domain` the same by domain.
        flops: of the whole training, without sharing.
        seconds: of this training alone; after the shared trunk, if it has one.
        run: its folder, relative to the sweep's.
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
    """The loss reduction from one number of tokens to another.

    Attributes:
        drop: L(begin) - L(end), positive if more tokens are better.
        reach: "measured", "extrapolated" (`end` is beyond the largest budget), or "far" (beyond ten times it).
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
        offset: E, the loss that remains with any amount of this text.
        scale: A, in nats tokens^exponent.
        exponent: alpha; the high end of its interval may be the highest value tried.
        start_tokens: D0, tokens of the warm start that count as training tokens; 0 if they do not count.
        residual: root mean square of the relative residuals of the budgets' mean losses.
        identified: whether the points determine offset and exponent; if not, `notes` states why, and only losses
            within the measured range should be used.
        notes: on the fit.
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
    """A multiple of the data; `value` and `low` are None if no amount is enough, `high` if it is unbounded."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Need:
    """The data that a lower perplexity needs, as a multiple of the largest budget.

    Attributes:
        lower: reduction as a share of the perplexity at the largest budget.
        nats: the same of the loss, -ln(1 - lower).
        fold: by the power law of perplexity, which has no floor: a lower bound.
        law_fold: by the fitted law with its floor; None if the points do not determine it.
        tokens: in total, by `fold`; None if no amount is enough.
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
        tenfold: loss reduction per 10x of data, in nats.
        tenfold_share: the same as a share of the perplexity.
        residual: root mean square of the relative residuals of the budgets' perplexities.
        needs: for 10, 25 and 50% lower perplexity.
    """

    exponent: Interval
    tenfold: Interval
    tenfold_share: Interval
    residual: float
    needs: tuple[Need, ...]


@dataclass(frozen=True)
class Curve:
    """The points that share a warm start, and their fits.

    Attributes:
        name: of the curve.
        dense_tokens: of the dense training before the conversion, if varied or known.
        start_loss: of the warm start, before its first step; None if not measured.
        points: by tokens, then seed.
        budgets: the measured mean loss over each budget's seeds.
        law: None if it could not be fitted; `reason` states why.
        neighbours: from each budget to the next, from the measured losses.
        tenfold: the gain of each 10x of tokens, by the law.
        band: the law from the smallest budget to the end of the extrapolation, evenly in log D.
        power: power law of perplexity, and the data for a lower perplexity; None for a single budget.
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
        offset, scale, dense, upcycled, interaction: its five parameters; with a positive interaction, upcycling tokens
            gain less the longer the dense model was trained.
        exponents: of D2 after each dense budget; they do not depend on the unit of D1.
        residual, notes: as of `Law`.
        identified: whether the interval of the interaction excludes 0.
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
    """How the trainings of the budgets relate.

    Attributes:
        kind: "trunk": budgets share a training at constant rate and decay separately; "constant": each budget is a
            point of one training at constant rate; "own": each budget is a separate training with a complete schedule.
        name: `lr_scheduler_type`.
        warmup_steps: of each; below 1 as a share of its steps.
        decay: for a trunk, the share of a budget's steps in which the rate decays.
        text: the same in a sentence.
    """

    kind: str
    name: str
    warmup_steps: float
    decay: float | None
    text: str


@dataclass(frozen=True)
class HeldOutFacts:
    """The held-out text, the same for all points."""

    documents: int
    tokens: int
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Uncertainty:
    """The intervals: the middle `level` of the `draws`, over what was resampled, and in a sentence."""

    level: float
    draws: int
    over: tuple[str, ...]
    text: str


class Sweep(Result):
    """Trainings at several budgets, and the laws fitted to them.

    Attributes:
        recipe: its name; `stage` of a pipeline whose tokens were varied.
        model: the start of every training, "new" for random weights.
        training_tokens: tokens of the training text; larger budgets read it again.
        largest: the largest budget; `extrapolated_to` is the end of the bands.
        curves: one, or one for each dense budget.
        joint: the law of dense and upcycling tokens, if dense tokens were varied.
        warnings: caveats.
        versions, command: of the sweep.
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
        DataError: it is missing, or cannot be read.
    """
    return Sweep.read(folder / FILE)
