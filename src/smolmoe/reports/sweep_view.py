"""The report's figures and tables of a sweep."""

from __future__ import annotations

from dataclasses import replace

from smolmoe.core import units
from smolmoe.core.statistics import Interval
from smolmoe.reports.blocks import Chart, Table
from smolmoe.reports.figures import Figure, Lines, Series, row_dots
from smolmoe.reports.names import Looks
from smolmoe.reports.plot import plot
from smolmoe.reports.scaling import sweep_figure
from smolmoe.results.scaling_law import Curve, JointLaw, Power, Sweep


def sweep_chart(sweep: Sweep, name: str, looks: Looks) -> Chart | None:
    """Losses by training tokens with their law, and what each 10x of tokens gains."""
    if not sweep.curves:
        return None
    figure = sweep_figure(sweep, name=name, places=[looks(_look(sweep, curve)) for curve in sweep.curves])
    return replace(
        plot(figure),
        caption=f"{figure.caption} {sweep.uncertainty.text}",
        head=["curve", "tokens", "steps", "seed", "loss (nats per token)", "FLOPs"],
        rows=[[c.name, p.tokens, p.steps, p.seed, p.loss, p.flops] for c in sweep.curves for p in c.points],
    )


def _look(sweep: Sweep, curve: Curve) -> str:
    """A curve is not a model: it has a separate look."""
    return f"sweep of {sweep.recipe}: {curve.name}"


def needs_chart(sweep: Sweep, name: str, looks: Looks) -> Chart | None:
    """The multiples of the data on a logarithmic axis, with intervals."""
    series = [one for curve in sweep.curves for one in _needs(curve, looks(_look(sweep, curve)))]
    if not series:
        return None
    rows = dict.fromkeys(f"{need.lower:.0%}" for c in sweep.curves if c.power for need in c.power.needs)
    caption = (
        "Multiples of the largest budget, with 95% intervals. The power law of perplexity has no floor, so it gives "
        "the minimum. Past ten times the largest budget, both are a guess."
    )
    panel = Lines("", "multiple of the data", "lower perplexity", series, rows=list(rows), scale="ratio")
    table = sweep_tables(sweep)[-1]
    title = f"Data needed for a lower perplexity: {sweep.model}"
    return replace(plot(Figure(name, title, caption, [panel])), head=table.head, rows=table.rows)


def _needs(curve: Curve, place: int) -> list[Series]:
    """Filled dots without a floor, hollow ones by the law with its floor."""
    found: list[Series] = []
    for label, key in (("no floor", "fold"), ("law with its floor", "law_fold")):
        folds = enumerate(getattr(need, key) for need in (curve.power.needs if curve.power else ()))
        known = [(row, fold, fold.value) for row, fold in folds if fold is not None and fold.value is not None]
        highest = 1e3 * max((value for _, _, value in known), default=1.0)
        points = [
            (value, row, (fold.low or value, fold.high or highest), key == "law_fold") for row, fold, value in known
        ]
        found += row_dots(f"{curve.name}, {label}", points, place)
    return found


def sweep_tables(sweep: Sweep) -> list[Table]:
    """The losses of the budgets, the gain of more data, and the data that a lower perplexity needs."""
    budgets = [[c.name, units.tokens(one.tokens), _ends(one.loss)] for c in sweep.curves for one in c.budgets]
    gains = [
        [curve.name, units.tokens(gain.begin), units.tokens(gain.end), _ends(gain.drop, "+.4f"), gain.reach]
        for curve in sweep.curves
        for gain in (*curve.neighbours, *curve.tenfold)
    ]
    needs = [
        [
            curve.name,
            f"{need.lower:.0%}",
            f"{need.nats:.3f}",
            *(fold and units.times(fold.value, fold.low, fold.high) for fold in (need.fold, need.law_fold)),
            None if need.tokens is None else units.tokens(need.tokens),
            need.reach,
        ]
        for curve in sweep.curves
        for need in (curve.power.needs if curve.power else ())
    ]
    seeds = len({point.seed for curve in sweep.curves for point in curve.points})
    lower = ["lower perplexity", "loss reduction (nats per token)", "times the data, no floor"]
    found = [
        Table(["curve", "tokens", f"mean of {seeds}" if seeds > 1 else "loss"], budgets, "Loss (nats per token)"),
        Table(
            ["curve", "from (tokens)", "to (tokens)", "loss reduction (nats per token)", "basis"], gains, "More data"
        ),
        Table(["curve", *lower, "times the data, law with its floor", "tokens", "basis"], needs, "Data needed"),
    ]
    return [replace(table, caption=f"{table.caption}, with 95% intervals") for table in found if table.rows]


def sweep_words(sweep: Sweep) -> list[str]:
    """Sentences on the fitted laws, or why a law is missing, and the caveats."""
    said = [f"{curve.name}: {sentence}" for curve in sweep.curves for sentence in _sentences(curve)]
    if sweep.joint is not None:
        said += _joint(sweep.joint)
    elif sweep.joint_reason is not None:
        said.append(f"No joint law: {sweep.joint_reason}")
    return [*said, sweep.uncertainty.text, *sweep.warnings]


def _sentences(curve: Curve) -> list[str]:
    said = [] if curve.start_loss is None else [f"loss before training {curve.start_loss:.4f}."]
    said += [_power(curve.power)] if curve.power else []
    law = curve.law
    if law is None:
        return [*said, f"no law: {curve.reason or 'not fitted'}"]
    tokens = f"(D + {law.start_tokens:,})" if law.start_tokens else "D"
    ends = f"E {_ends(law.offset)}, A {_ends(law.scale, '.3g')}, α {_ends(law.exponent, '.3f')}"
    sure = "" if law.identified else " The points do not determine it."
    return [*said, f"L(D) = E + A {tokens}^-α, {ends}, residual {law.residual:.2%}.{sure}", *law.notes]


def _power(power: Power) -> str:
    share, nats = power.tenfold_share, power.tenfold
    return (
        f"each 10x of data gives {share.value:.1%} lower perplexity [{share.low:.1%}, {share.high:.1%}], "
        f"{_ends(nats)} nats per token (power law of perplexity, residual {power.residual:.2%})."
    )


def _joint(law: JointLaw) -> list[str]:
    names = {"E": law.offset, "A": law.scale, "a1": law.dense, "a2": law.upcycled, "a3": law.interaction}
    numbers = ", ".join(f"{name} {_ends(value, '.4g')}" for name, value in names.items())
    exponents = [
        f"After {part.dense_tokens:,} dense tokens the exponent of D2 is {_ends(part.exponent, '.3f')}."
        for part in law.exponents
    ]
    return [f"L(D1, D2) = E + A D1^-a1 D2^(-a2 + a3 ln D1): {numbers}.", *exponents, *law.notes]


def _ends(found: Interval, form: str = ".4f") -> str:
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"
