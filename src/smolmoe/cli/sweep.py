"""sweep: a training at several token budgets, and the scaling law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smolmoe.cli.command import Command, Given
from smolmoe.cli.output import print_rows, table
from smolmoe.core import units
from smolmoe.recipe.resolve import values_of
from smolmoe.verbs import measure

if TYPE_CHECKING:
    from smolmoe.core.statistics import Interval
    from smolmoe.results.scaling_law import Curve, Gain, JointLaw, Sweep
    from smolmoe.scaling.forecast import SweepForecast

_REACH = {"measured": "", "extrapolated": " (extrapolated)", "far": " (beyond 10x the largest budget: a guess)"}


def _show_forecast(found: SweepForecast, given: Given) -> None:
    columns = ("what", "runs", "steps", "tokens", "FLOPs", "time")
    rows = [
        (
            cost.name,
            cost.runs,
            f"{cost.steps:,}",
            units.tokens(cost.tokens),
            units.flops(cost.flops),
            units.duration(cost.seconds),
        )
        for cost in found.costs
    ]
    table(f"would write {found.out}", columns, rows)
    print(found.schedule)
    shared = "" if found.whole <= found.flops else f" ({units.flops(found.whole)} without sharing)"
    print_rows(
        [
            ("budgets", ", ".join(f"{tokens:,}" for tokens in found.budgets)),
            ("FLOPs", f"{units.flops(found.flops)}{shared}"),
            ("time", f"about {units.duration(found.seconds)} of training on this machine"),
            ("done", f"{found.done} of {found.points} points"),
        ]
    )


def _show(result: Sweep, given: Given) -> None:
    out = Path(given.get("out") or f"{values_of(given['recipe'], {}, changes=given.get('set', ()))['out']}-sweep")
    print(f"{out}: {result.recipe}{f', stage {result.stage}' if result.stage else ''}")
    held_out = result.held_out
    print(f"{result.schedule.text}\nHeld out: {held_out.tokens:,} tokens of {held_out.documents:,} documents.")
    for curve in result.curves:
        _show_curve(curve)
    if result.joint is not None:
        _show_joint(result.joint)
    elif result.joint_reason is not None:
        print(f"\nNo joint law: {result.joint_reason}")
    print(f"\n{result.uncertainty.text}")
    for warning in result.warnings:
        print(f"  ! {warning}")
    print(f"{out / 'sweep.png'}")


def _show_curve(curve: Curve) -> None:
    seeds = {point.seed for point in curve.points}
    rows = [
        (f"{place.tokens:,}", _ends(place.loss), "" if at == 0 else _ends(curve.neighbours[at - 1].drop))
        for at, place in enumerate(curve.budgets)
    ]
    columns = ("tokens", f"loss, mean of {len(seeds)}" if len(seeds) > 1 else "loss", "gain over the previous budget")
    print()
    table(curve.name, columns, rows)
    if curve.start_loss is not None:
        print(f"  before training: {curve.start_loss:.4f}")
    _show_power(curve)
    if curve.law is None:
        print(f"  no law: {curve.reason}")
        return
    law = curve.law
    tokens = f"(D + {law.start_tokens:,})" if law.start_tokens else "D"
    print(f"  L(D) = E + A {tokens}^-α, residual {law.residual:.2%}")
    if law.identified:
        print_rows([("E", _ends(law.offset)), ("A", _ends(law.scale, ".3g")), ("α", _ends(law.exponent, ".3f"))])
    for note in law.notes:
        print(f"  {note}")
    for gain in curve.tenfold:
        print(_tenfold(gain))


def _show_power(curve: Curve) -> None:
    """How much more data a lower perplexity needs."""
    if curve.power is None:
        return
    power = curve.power
    share = power.tenfold_share
    print(
        f"  each 10x of data: {share.value:.1%} lower perplexity [{share.low:.1%}, {share.high:.1%}], "
        f"{_ends(power.tenfold)} nats per token (power of perplexity, residual {power.residual:.2%})"
    )
    rows = []
    for need in power.needs:
        tokens = "-" if need.tokens is None else units.tokens(need.tokens) + _REACH[need.reach]
        law = "-" if need.law_fold is None else units.times(need.law_fold.value, need.law_fold.low, need.law_fold.high)
        rows.append(
            (
                f"{need.lower:.0%}",
                f"{need.nats:.3f}",
                units.times(need.fold.value, need.fold.low, need.fold.high),
                law,
                tokens,
            )
        )
    columns = (
        "lower perplexity",
        "nats per token",
        "factor of data, no floor",
        "factor by the law with a floor",
        "tokens",
    )
    table(
        f"{curve.name}: data needed beyond {units.tokens(curve.budgets[-1].tokens)} tokens, 95% intervals",
        columns,
        rows,
    )


def _tenfold(gain: Gain) -> str:
    span = f"  {units.tokens(gain.begin)} to {units.tokens(gain.end)} tokens"
    return f"{span}: {_ends(gain.drop)} nats per token{_REACH[gain.reach]}"


def _show_joint(law: JointLaw) -> None:
    print("\nL(D1, D2) = E + A D1^-a1 D2^(-a2 + a3 ln D1)")
    names = [("E", law.offset), ("A", law.scale), ("a1", law.dense), ("a2", law.upcycled), ("a3", law.interaction)]
    print_rows([(name, _ends(value, ".4g")) for name, value in names])
    for part in law.exponents:
        print(f"  after {part.dense_tokens:,} dense tokens the exponent of D2 is {_ends(part.exponent, '.3f')}")
    for note in law.notes:
        print(f"  {note}")


def _ends(value: Interval, form: str = ".4f") -> str:
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


COMMAND = Command(measure.sweep, _show, _show_forecast)
