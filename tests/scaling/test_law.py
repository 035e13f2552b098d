"""Laws of curves whose numbers are known: found again, as uncertain as they are, and refused where there are none."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from smolmoe.core.statistics import Interval
from smolmoe.errors import DataError
from smolmoe.results.scaling_law import Law, Power
from smolmoe.scaling.law import (
    Fit,
    band_of,
    budgets_of,
    fit_curves,
    interval,
    law_of,
    neighbours_of,
    tenfold_of,
    uncertainty_of,
)
from smolmoe.scaling.law_joint import fit_joint, joint_reason
from smolmoe.scaling.law_needs import power_of
from smolmoe.scaling.law_noise import Observed

OFFSET, SCALE, EXPONENT = 3.1, 40.0, 0.33
BUDGETS = 500_000 * 2.0 ** np.arange(5)


def known(tokens: Any, offset: float = OFFSET, scale: float = SCALE, exponent: float = EXPONENT) -> Any:
    return offset + scale * np.asarray(tokens, dtype=float) ** -exponent


def observed(losses: Any, tokens: Any = BUDGETS) -> Observed:
    """Points [B] or [B, S] measured on one document, so that documents add no noise."""
    losses = np.asarray(losses, dtype=float).reshape(len(tokens), -1)
    return Observed(np.asarray(tokens, dtype=float), losses[:, :, None] * 1000, np.array([1000.0]))


def fit(losses: Any, tokens: Any = BUDGETS, start: int | None = None, draws: int = 200, seed: int = 0) -> Fit:
    return fit_curves([observed(losses, tokens)], [start], draws=draws, seed=seed)[0]


def law(found: Fit) -> Law:
    result = law_of(found)
    assert result is not None
    return result


def noisy(seed: int, size: float, seeds: int = 1, shared: float = 0.0, budgets: Any = BUDGETS) -> Any:
    rng = np.random.default_rng(seed)
    own = size * rng.standard_normal((len(budgets), seeds))
    return known(budgets)[:, None] * (1 + own + shared * rng.standard_normal((1, seeds)))


def holds(ends: Interval, truth: float) -> bool:
    return ends.low <= truth <= ends.high


def width(ends: Interval) -> float:
    return ends.high - ends.low


# -- one curve ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "scale", "exponent"), [(3.1, 40, 0.33), (0.0, 12, 0.09), (1.2, 5000, 0.7)])
def test_a_curve_without_noise_is_found_again(offset: float, scale: float, exponent: float) -> None:
    found = law(fit(known(BUDGETS, offset, scale, exponent)))
    assert found.exponent.value == pytest.approx(exponent, rel=2e-3)
    assert found.offset.value == pytest.approx(offset, abs=5e-3)
    assert found.scale.value == pytest.approx(scale, rel=2e-2)
    assert found.residual < 1e-4


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95% of 60 would be 57; fewer than 51, or none missed at all over four kinds, is not that."""
    tokens = np.array([1.5e6, BUDGETS[-1], 10 * BUDGETS[-1]])
    truth = known(tokens)
    hits = {"offset": 0, "exponent": 0, "within": 0, "beyond": 0}
    for seed in range(60):
        found = fit(noisy(seed, 0.002), draws=150, seed=seed)
        numbers = law(found)
        value, drawn = found.at(tokens)
        hits["offset"] += holds(numbers.offset, OFFSET)
        hits["exponent"] += holds(numbers.exponent, EXPONENT)
        hits["within"] += holds(interval(value[0], drawn[:, 0]), truth[0])
        hits["beyond"] += holds(interval(value[2], drawn[:, 2]), truth[2])
    assert all(51 <= count <= 60 for count in hits.values()), hits
    assert sum(hits.values()) < 4 * 60


def test_seeds_that_differ_everywhere_move_the_offset_and_not_the_exponent() -> None:
    fits = [fit(noisy(3, 0.001, seeds=4, shared=shared)) for shared in (0.0, 0.01)]
    same, shifted = map(law, fits)
    assert shifted.exponent.value == pytest.approx(same.exponent.value, abs=0.05)
    assert width(shifted.exponent) < 1.5 * width(same.exponent)
    level, moved = (budgets_of(found)[0].loss for found in fits)
    assert width(moved) > 3 * width(level)
    rows = [law(fit(noisy(seed, 0.001, seeds=4, shared=0.01), seed=seed)) for seed in range(20)]
    assert sum(holds(row.offset, OFFSET) for row in rows) >= 17


def test_more_seeds_know_more() -> None:
    one, four = (
        np.mean([width(law(fit(noisy(seed, 0.002, seeds=seeds))).exponent) for seed in range(8)]) for seeds in (1, 4)
    )
    assert four < 0.6 * one


def test_a_diverged_training_does_not_bend_the_law() -> None:
    losses = noisy(1, 0.0005, seeds=3)
    losses[4, 1] *= 1.3
    assert law(fit(losses)).exponent.value == pytest.approx(EXPONENT, abs=0.05)


def test_the_tokens_of_the_warm_start_count_where_that_fits() -> None:
    began = 2_000_000
    late = law(fit(known(BUDGETS + began), start=began))
    assert late.start_tokens == began
    assert late.exponent.value == pytest.approx(EXPONENT, rel=5e-3)
    assert any("2,000,000" in note for note in late.notes)
    assert law(fit(known(BUDGETS), start=began)).start_tokens == 0


def test_documents_count_as_the_sample_that_they_are() -> None:
    """The interval of a mean over 400 documents is ±1.96 standard errors, all points moving together."""
    rng = np.random.default_rng(0)
    hardness = 1 + 0.3 * rng.standard_normal(400)
    counts = np.full(400, 50.0)
    nll = known(BUDGETS)[:, None, None] * hardness * counts
    found = fit_curves([Observed(BUDGETS, nll, counts)], [None], draws=1000)[0]
    budget = budgets_of(found)[0].loss
    error = 1.96 * known(BUDGETS[0]) * hardness.std() / np.sqrt(400)
    assert width(budget) / 2 == pytest.approx(error, rel=0.15)
    gain = neighbours_of(found)[0].drop
    assert width(gain) < width(budget) / 5  # the same documents: their hardness cancels


# -- what is not known -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_budgets_fit_nothing(count: int) -> None:
    found = fit(known(BUDGETS[:count]), BUDGETS[:count])
    assert law_of(found) is None
    assert found.reason is not None
    assert f"{count} budget" in found.reason
    assert (band_of(found, 10**9), tenfold_of(found, 10**9)) == ((), ())
    assert len(neighbours_of(found)) == count - 1


def test_three_budgets_leave_nothing_to_judge_the_fit_by() -> None:
    found = fit(known(BUDGETS[:3]), BUDGETS[:3])
    assert any("Three points determine three parameters" in note for note in law(found).notes)
    assert uncertainty_of([found]).over == ("documents",)


@pytest.mark.parametrize("slope", [0.0, 0.002])
def test_a_loss_that_does_not_fall_has_no_exponent(slope: float) -> None:
    rng = np.random.default_rng(2)
    found = fit(3.0 + slope * np.arange(5) + 0.003 * rng.standard_normal(5))
    assert not law(found).identified
    assert "does not fall" in law(found).notes[0]


def test_a_loss_at_its_floor_has_no_upper_end_to_its_exponent() -> None:
    losses = np.array([3.5, 3.0, 3.0, 3.0, 3.0]) * (1 + 1e-4 * np.array([0, 1, -1, 1, -1]))
    found = law(fit(losses))
    assert not found.identified
    assert "no upper bound" in found.notes[0]


def test_a_loss_that_falls_by_the_same_each_time_has_no_floor() -> None:
    rng = np.random.default_rng(4)
    losses = 4.0 - 0.1 * np.arange(5) + 0.004 * rng.standard_normal(5)
    notes = " ".join(law(fit(losses)).notes)
    assert "interval of the offset E reaches 0" in notes


def test_the_band_widens_and_far_is_called_far() -> None:
    found = fit(noisy(7, 0.002))
    band = band_of(found, 200 * int(BUDGETS[-1]))
    beyond = [width(place.loss) for place in band if place.reach != "measured"]
    assert beyond == sorted(beyond)
    assert beyond[-1] > 3 * width(next(place for place in band if place.tokens == BUDGETS[-1]).loss)
    reach = {place.tokens: place.reach for place in band}
    assert reach[int(BUDGETS[-1])] == "measured"
    assert reach[int(10 * BUDGETS[-1])] == "extrapolated"
    assert band[-1].reach == "far"
    assert [gain.reach for gain in tenfold_of(found, 200 * int(BUDGETS[-1]))].count("far") > 0


def test_what_tenfold_tokens_buy() -> None:
    found = fit(known(BUDGETS))
    first = tenfold_of(found, 10 * int(BUDGETS[-1]))[0]
    assert (first.begin, first.end, first.reach) == (500_000, 5_000_000, "measured")
    assert first.drop.value == pytest.approx(known(5e5) - known(5e6), rel=1e-3)


def test_bad_points_are_refused() -> None:
    losses = known(BUDGETS)
    losses[2] = np.nan
    with pytest.raises(DataError, match="is not positive"):
        fit(losses)
    other = Observed(BUDGETS, known(BUDGETS)[:, None, None] * 900, np.array([900.0]))
    with pytest.raises(DataError, match="same documents"):
        fit_curves([observed(known(BUDGETS)), other], [None, None])


# -- two trainings -----------------------------------------------------------------------------------------------------

DENSE = (1_000_000, 4_000_000, 16_000_000)
UPCYCLED = 500_000 * 2.0 ** np.arange(4)


def joint_points(interaction: float, size: float = 0.0005, dense: tuple[int, ...] = DENSE) -> list[Observed]:
    rng = np.random.default_rng(0)
    curves = []
    for d1 in dense:
        exponent = 0.30 - interaction * np.log(d1)
        losses = 2.5 + 2000 * d1**-0.28 * UPCYCLED**-exponent
        curves.append(observed(losses[:, None] * (1 + size * rng.standard_normal((4, 2))), UPCYCLED))
    return curves


def test_the_joint_law_is_found_again() -> None:
    found = fit_joint(joint_points(0.012, size=0.0), DENSE, draws=5)
    numbers = [found.offset, found.scale, found.dense, found.upcycled, found.interaction]
    assert [number.value for number in numbers] == pytest.approx([2.5, 2000, 0.28, 0.30, 0.012], rel=1e-3)


def test_the_interaction_is_told_from_none() -> None:
    found = fit_joint(joint_points(0.012), DENSE, draws=60)
    assert found.identified
    assert holds(found.interaction, 0.012)
    exponents = [part.exponent.value for part in found.exponents]
    assert exponents == sorted(exponents, reverse=True)  # each token buys less after more dense ones
    assert exponents[0] == pytest.approx(0.30 - 0.012 * np.log(DENSE[0]), abs=0.01)


def test_no_interaction_is_said_to_be_none() -> None:
    found = fit_joint(joint_points(0.0, size=0.002), DENSE, draws=60)
    assert not found.identified
    assert "includes 0" in found.notes[0]


def test_too_few_dense_budgets_have_no_joint_law() -> None:
    one = joint_points(0.0, dense=DENSE[:1])
    reason = joint_reason(one, DENSE[:1])
    assert reason is not None
    assert "at least 2 dense budgets" in reason
    with pytest.raises(ValueError, match="at least 2"):
        fit_joint(one, DENSE[:1])


def test_the_same_points_give_the_same_numbers() -> None:
    first, second = (law(fit(noisy(1, 0.002))) for _ in range(2))
    assert json.dumps(vars(first), default=vars) == json.dumps(vars(second), default=vars)


def power(found: Fit) -> Power:
    result = power_of(found)
    assert result is not None
    return result


def test_what_a_lower_perplexity_needs_on_published_points() -> None:
    """Seed document moe-upcycle, 1x, 2x, 4x and 8x: 10% lower perplexity takes 2.6 times the data, 25% 14, 50% 569."""
    losses = np.log([13.98, 12.92, 11.97, 11.15])
    found = power(fit(losses, 521_250 * 2.0 ** np.arange(4)))
    folds = [need.fold.value for need in found.needs]
    assert [need.lower for need in found.needs] == [0.10, 0.25, 0.50]
    assert [float(f"{fold:.2g}") for fold in folds[:2] if fold] == [2.6, 14.0]
    assert folds[2] == pytest.approx(569, abs=1)
    assert found.tenfold_share.value == pytest.approx(0.22, abs=0.005)
    assert found.tenfold.value == pytest.approx(-np.log1p(-found.tenfold_share.value))
    assert [need.nats for need in found.needs] == pytest.approx([0.10536, 0.28768, 0.69315], abs=1e-5)
    assert [need.reach for need in found.needs] == ["extrapolated", "far", "far"]
    for need in found.needs:
        assert need.fold.low is not None
        assert need.fold.value is not None
        assert need.fold.low < need.fold.value < (need.fold.high or np.inf)


def test_a_curve_that_bends_is_known_less_by_a_power() -> None:
    straight = power(fit(3.5 - 0.1 * np.log(BUDGETS / BUDGETS[0])))
    bent = power(fit(known(BUDGETS)))
    widths = [found.exponent.high - found.exponent.low for found in (straight, bent)]
    assert widths[0] < 0.01 < widths[1]


def test_a_floor_makes_it_out_of_reach() -> None:
    """With a floor of 3.1 nats no amount of data takes 0.69 off 3.5; the power of perplexity does not know that."""
    found = power(fit(noisy(0, 2e-4)))
    near, _, half = found.needs
    assert near.law_fold is not None
    assert half.law_fold is not None
    assert near.law_fold.value is not None
    assert near.law_fold.value > near.fold.value  # type: ignore[operator]
    assert half.law_fold.value is None
    assert half.fold.value is not None


def test_a_loss_that_does_not_fall_needs_no_amount() -> None:
    found = power(fit([3.0, 3.01, 3.02], BUDGETS[:3]))
    assert all(need.fold.value is None and need.tokens is None and need.reach == "far" for need in found.needs)
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))


def test_two_budgets_give_a_power_and_one_gives_none() -> None:
    assert power_of(fit([3.0], BUDGETS[:1])) is None
    assert power(fit([3.0, 2.9], BUDGETS[:2])).exponent.value == pytest.approx(0.1 / np.log(2))
