"""The figure of a sweep, from values made by hand: points, band, what is extrapolated, and where it is a guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from reports.overview_folder import EXAMPLES

from smolmoe.reports.drawing import draw as drawn
from smolmoe.reports.drawing import look, save_png
from smolmoe.reports.scaling import curves_figure, sweep_figure
from smolmoe.results.scaling_law import Curve, HeldOutFacts, Sweep

BUDGETS = [500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000]


def loss(tokens: float) -> float:
    return 3.1 + 40 * tokens**-0.33


def ends(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def reach(tokens: float) -> str:
    return "measured" if tokens <= BUDGETS[-1] else "extrapolated" if tokens <= 10 * BUDGETS[-1] else "far"


def places(tokens: list[int], half: float) -> list[dict[str, Any]]:
    return [{"tokens": n, "loss": ends(loss(n), half), "reach": reach(n)} for n in tokens]


def curve(name: str = "moe", *, until: int = 200_000_000, fitted: bool = True) -> dict[str, Any]:
    cost = {"steps": 1, "by_domain": {}, "flops": 1e9, "seconds": 1.0, "run": "run"}
    points = [{"tokens": n, "seed": seed, "loss": loss(n) + 0.002 * seed, **cost} for n in BUDGETS for seed in (0, 1)]
    law = {"offset": ends(3.1, 0.1), "scale": ends(40, 3), "exponent": ends(0.33, 0.05), "start_tokens": 0}
    band = [n for n in (*BUDGETS, 20_000_000, 80_000_000, 200_000_000) if n <= until]
    gain = {"begin": 500_000, "end": 5_000_000, "drop": ends(0.28, 0.01), "reach": "measured"}
    far = {"begin": 8_000_000, "end": 80_000_000, "drop": ends(0.11, 0.04), "reach": "extrapolated"}
    return {
        "name": name,
        "start_loss": 3.9,
        "points": points,
        "budgets": places(BUDGETS, 0.004),
        "law": law | {"residual": 0.0, "identified": True, "notes": []} if fitted else None,
        "reason": None,
        "dense_tokens": None,
        "neighbours": [{**gain, "end": 1_000_000}],
        "tenfold": [gain, far] if fitted else [],
        "band": places(band, 0.01) if fitted else [],
    }


def draw(*curves: dict[str, Any], path: Path) -> Figure:
    with look():
        values = json.loads((EXAMPLES / "sweep.json").read_text()) | {"curves": list(curves), "largest": BUDGETS[-1]}
        values["held_out"] |= {"documents": 180, "tokens": 30_000}
        drawing = drawn(sweep_figure(Sweep.from_json(values)), titled=True)
        save_png(drawing, path)
    assert path.stat().st_size > 10_000
    assert "30,000 held-out tokens of 180 documents" in drawing.caption
    return drawing.figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text().strip() for text in figure.axes[0].texts]


def hatched(figure: Figure) -> list[Any]:
    return [part for part in figure.axes[0].collections if isinstance(part, PolyCollection) and part.get_hatch()]


def test_beyond_the_largest_budget_is_hatched_and_beyond_ten_times_it_a_guess(tmp_path: Path) -> None:
    figure = draw(curve(), path=tmp_path / "a.png")
    assert len(hatched(figure)) == 1
    assert {"largest budget", "beyond 10×: a guess", "before"} <= set(texts(figure))
    near = draw(curve(until=80_000_000), path=tmp_path / "b.png")
    assert "beyond 10×: a guess" not in texts(near)


def test_the_legend_says_the_exponent_and_its_interval(tmp_path: Path) -> None:
    figure = draw(curve(), path=tmp_path / "a.png")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["moe: α 0.33 [0.28, 0.38]"]


def test_without_a_law_there_are_points_and_what_they_gained(tmp_path: Path) -> None:
    figure = draw(curve(fitted=False), path=tmp_path / "a.png")
    assert not hatched(figure)
    assert "no law" in figure.axes[0].get_legend().get_texts()[0].get_text()
    assert figure.axes[1].get_title(loc="left") == "What more tokens bought"
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["500 K → 1 M"]


def test_several_curves_share_one_figure(tmp_path: Path) -> None:
    figure = draw(curve("dense"), curve("moe"), path=tmp_path / "a.png")
    rows = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert rows == [f"{name}\n{step}" for name in ("dense", "moe") for step in ("500 K → 5 M", "8 M → 80 M")]
    joined = curves_figure(
        [TypeAdapter(Curve).validate_python(curve(name)) for name in ("a", "b")],
        largest=BUDGETS[-1],
        name="two",
        title="Two",
        held_out=HeldOutFacts(1, 2, ("text",)),
    )
    assert (joined.name, joined.title) == ("two", "Two")


def test_an_interval_that_opens_wide_does_not_flatten_the_points(tmp_path: Path) -> None:
    wide = curve()
    wide["band"][-1]["loss"] = ends(3.2, 500.0)
    low, high = draw(wide, path=tmp_path / "a.png").axes[0].get_ylim()
    assert high - low < 3
