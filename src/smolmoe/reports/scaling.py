"""The figure of a sweep: losses by training tokens, the law through them, and what it cannot know.

Call it inside `drawing.look()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.colors import to_rgba
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from smolmoe.core import units
from smolmoe.reports.drawing import BAND, GREY, INK, STYLES, Drawing, new_figure
from smolmoe.results.scaling_law import Curve, Gain, HeldOutFacts, Prediction, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = "far"
_ROW = 0.3  # inches of a row of the right panel


def sweep_figure(sweep: Sweep, *, name: str = "sweep") -> Drawing:
    """The losses of a sweep with their law on the left, what each 10x of tokens buys on the right."""
    return curves_figure(
        sweep.curves,
        largest=sweep.largest,
        name=name,
        title=f"Held-out loss by training tokens: {sweep.recipe}",
        held_out=sweep.held_out,
    )


def curves_figure(curves: Sequence[Curve], *, largest: int, name: str, title: str, held_out: HeldOutFacts) -> Drawing:
    """The same for curves of several sweeps that were measured on the same text.

    Args:
        largest: budget of all.
        held_out: the text.
    """
    gains = [(curve, gain, index) for index, curve in enumerate(curves) for gain in _gains(curve)]
    figure = new_figure(max(4.3, 1.6 + _ROW * len(gains)))
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for index, curve in enumerate(curves):
        _draw_curve(left, curve, STYLES[index % len(STYLES)])
    _finish_losses(left, curves, largest)
    _draw_gains(right, gains, several=len(curves) > 1)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    text = f"{held_out.tokens:,} held-out tokens of {held_out.documents:,} documents"
    caption = (
        f"Loss on {text}. Dots are trainings, bars and bands 95% intervals. Hatched: beyond the largest budget; grey: "
        "beyond ten times it, where the law is a guess that no interval measures."
    )
    return Drawing(name, title, caption, figure)


def _draw_curve(axes: Axes, curve: Curve, style: Mapping[str, Any]) -> None:
    colour = style["color"]
    band = curve.band
    if band:
        known = [place for place in band if place.reach == "measured"]
        beyond = [known[-1], *(place for place in band if place.reach != "measured")]
        _fill(axes, known, facecolor=to_rgba(colour, 0.22), linewidth=0)
        _fill(axes, beyond, facecolor=to_rgba(colour, 0.07), edgecolor=to_rgba(colour, 0.45), hatch="///", linewidth=0)
        axes.plot(*_line(known), color=colour, linestyle=style["linestyle"], linewidth=1.6)
        axes.plot(*_line(beyond), color=colour, linestyle=(0, (2, 2)), linewidth=1.1)
    budgets = curve.budgets
    tokens = [place.tokens for place in budgets]
    losses = [place.loss.value for place in budgets]
    errors = [
        [max(0.0, place.loss.value - place.loss.low) for place in budgets],
        [max(0.0, place.loss.high - place.loss.value) for place in budgets],
    ]
    look = {"color": colour, "marker": style["marker"], "markersize": style["markersize"]}
    look["markerfacecolor"] = style.get("markerfacecolor", colour)
    axes.errorbar(tokens, losses, yerr=errors, linestyle="none", elinewidth=1, capsize=2, label=_label(curve), **look)
    if any(point.seed != curve.points[0].seed for point in curve.points):
        dots = [(point.tokens, point.loss) for point in curve.points]
        axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=3, alpha=0.6)
    if curve.start_loss is not None:
        axes.axhline(curve.start_loss, color=colour, linestyle=(0, (1, 3)), linewidth=0.9)


def _fill(axes: Axes, places: Sequence[Prediction], **look: Any) -> None:
    tokens = [place.tokens for place in places]
    low, high = ([getattr(place.loss, end) for place in places] for end in ("low", "high"))
    axes.fill_between(tokens, low, high, **look)


def _line(places: Sequence[Prediction]) -> tuple[list[int], list[float]]:
    return [place.tokens for place in places], [place.loss.value for place in places]


def _label(curve: Curve) -> str:
    law = curve.law
    if law is None:
        return f"{curve.name} (no law: too few budgets)"
    if not law.identified:
        return f"{curve.name} (exponent not identified)"
    exponent = law.exponent
    return f"{curve.name}: α {exponent.value:.2f} [{exponent.low:.2f}, {exponent.high:.2f}]"


def _finish_losses(axes: Axes, curves: Sequence[Curve], largest: int) -> None:
    axes.set_xscale("log")
    ends = [place.tokens for curve in curves for place in (*curve.band, *curve.budgets)]
    axes.set_xlim(min(ends) / 1.25, max(ends) * 1.25)
    axes.set_ylim(*_range(curves))
    if max(ends) > largest:
        axes.axvline(largest, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        _note(axes, largest, " largest budget")
    if max(ends) > 10 * largest:
        axes.axvspan(10 * largest, axes.get_xlim()[1], color=BAND, alpha=0.6, zorder=0, linewidth=0)
        _note(axes, 10 * largest, "beyond 10×: a guess ", rotation=90)
    for curve in curves:
        if curve.start_loss is not None and axes.get_ylim()[0] < curve.start_loss < axes.get_ylim()[1]:
            where = axes.get_yaxis_transform()
            axes.text(0.01, curve.start_loss, "before", transform=where, fontsize=7, ha="left", va="bottom")
            break
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: units.tokens(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelrotation=45 if max(ends) > 300 * min(ends) else 0)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.grid(True)
    axes.legend(loc="lower left")


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """Of the losses shown: an interval that opens wide is cut, not the points."""
    measured = [getattr(place.loss, end) for curve in curves for place in curve.budgets for end in ("low", "high")]
    measured += [point.loss for curve in curves for point in curve.points]
    measured += [curve.start_loss for curve in curves if curve.start_loss is not None]
    law = [place.loss.value for curve in curves for place in curve.band]
    low, high = min(measured + law), max(measured + law)
    span = (high - low) or 0.01
    bands = [getattr(place.loss, end) for curve in curves for place in curve.band for end in ("low", "high")]
    low = max(min([low, *bands]), low - 0.6 * span)
    high = min(max([high, *bands]), high + 0.2 * span)
    return low - 0.06 * span, high + 0.1 * span


def _note(axes: Axes, tokens: float, text: str, rotation: int = 0) -> None:
    where = axes.get_xaxis_transform()
    axes.text(tokens, 0.985, text, transform=where, fontsize=7.5, color=GREY, va="top", ha="left", rotation=rotation)


def _gains(curve: Curve) -> Sequence[Gain]:
    """What each 10x buys; where there is no law, what each budget gained over the one before."""
    return curve.tenfold or curve.neighbours


def _draw_gains(axes: Axes, gains: Sequence[tuple[Curve, Gain, int]], *, several: bool) -> None:
    for row, (_, gain, index) in enumerate(gains):
        style, drop = STYLES[index % len(STYLES)], gain.drop
        errors = [[max(0.0, drop.value - drop.low)], [max(0.0, drop.high - drop.value)]]
        faint = 0.45 if gain.reach == FAR else 1.0
        filled = style["color"] if gain.reach == "measured" else "white"
        axes.errorbar(
            drop.value,
            row,
            xerr=errors,
            color=style["color"],
            marker=style["marker"],
            markersize=style["markersize"],
            markerfacecolor=filled,
            capsize=2,
            elinewidth=1.2,
            alpha=faint,
        )
        axes.annotate(
            f"{drop.value:.3f}", (drop.value, row), (0, 6), textcoords="offset points", fontsize=7, ha="center"
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(gains)), [_row(curve, gain, several=several) for curve, gain, _ in gains])
    axes.set_ylim(len(gains) - 0.4, -0.7)
    axes.set_xlabel("fall of the loss (nats per token); hollow: extrapolated")
    tenfold = all(gain.end == 10 * gain.begin for _, gain, _ in gains)
    axes.set_title("What 10× the tokens buys" if tenfold else "What more tokens bought")
    axes.grid(True, axis="x")


def _row(curve: Curve, gain: Gain, *, several: bool) -> str:
    steps = f"{units.tokens(gain.begin)} → {units.tokens(gain.end)}"
    return f"{curve.name}\n{steps}" if several else steps
