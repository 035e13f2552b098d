"""The figures: every axis labelled, told apart without colour, dark where much is, with the numbers of the probe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from probe_json import interval, make_probe, probed, write_metrics

from smolmoe.reports.blocks import Grid
from smolmoe.reports.drawing import MAP, STYLES, Drawing, draw, look
from smolmoe.reports.figures import percent
from smolmoe.reports.page import Section
from smolmoe.reports.plot import plot
from smolmoe.reports.scales import Scale, room_around, spread
from smolmoe.reports.specialisation import losses, panels_in_a_row, separation, specialisation_figures, token_types
from smolmoe.reports.specialisation_experts import expert_figures
from smolmoe.reports.training_curves import History, training_figures

SMALL: dict[str, Any] = {"experts": 4, "layers": 3, "length": 4}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    """All figures there are, by name."""
    root = tmp_path_factory.mktemp("runs")
    after, before = probed(make_probe(**SMALL)), probed(make_probe(**SMALL, sharpness=0.1, seed=1))
    sizes = {"layers": 3, "experts": 4}
    runs = [
        History.read("stage A", write_metrics(root / "a", **sizes)),
        History.read("dense", write_metrics(root / "d", layers=3, experts=0)),
    ]
    pay = losses(after)
    assert pay is not None
    found = [*specialisation_figures(after, before), *expert_figures(after, before), *training_figures(runs), pay]
    with look():
        return {figure.name: draw(figure) for figure in found}


def panels(drawings: dict[str, Drawing]) -> Iterator[tuple[str, Axes]]:
    """Every visible axes that is no colour bar."""
    for name, drawing in drawings.items():
        for axes in drawing.figure.axes:
            if axes.get_visible() and axes.get_label() != "<colorbar>":
                yield name, axes


def test_every_axis_has_its_quantity(drawings: dict[str, Drawing]) -> None:
    """Of panels in a grid, those at the left and at the bottom."""
    for name, axes in panels(drawings):
        place = axes.get_subplotspec()
        if place.is_first_col():
            assert axes.get_ylabel(), name
        if place.is_last_row():
            assert axes.get_xlabel(), name
        assert axes.get_title(loc="left") or len(drawings[name].figure.axes) == 1, name


def test_every_heat_map_has_a_bar_with_a_unit(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        bars = [axes for axes in drawing.figure.axes if axes.get_label() == "<colorbar>"]
        assert bool(bars) == any(axes.images for _, axes in panels({name: drawing})), name
        assert all(bar.get_ylabel() for bar in bars), name


def test_captions_are_sentences(drawings: dict[str, Drawing]) -> None:
    for drawing in drawings.values():
        assert drawing.caption.endswith("."), drawing.name
        assert drawing.title, drawing.name


def test_lines_are_told_apart_without_colour(drawings: dict[str, Drawing]) -> None:
    looks = {(str(style["linestyle"]), style["marker"]) for style in STYLES}
    assert len(looks) == len(STYLES)
    for name, axes in panels(drawings):
        named = [line for line in axes.lines if not line.get_label().startswith("_")]
        seen = {(str(line.get_linestyle()), line.get_marker(), line.get_markerfacecolor()) for line in named}
        assert len(seen) == len(named), name


def test_darker_is_more_in_print() -> None:
    """Lightness falls all along the map."""
    light = [np.dot(to_rgb(colormaps[MAP](value)), (0.2126, 0.7152, 0.0722)) for value in np.linspace(0, 1, 64)]
    assert np.all(np.diff(light) < 0)


def test_numbers_in_the_cells_can_be_read_on_their_shade(drawings: dict[str, Drawing]) -> None:
    def luminance(colour: Any) -> float:
        parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    for name, axes in panels(drawings):
        for text in axes.texts if axes.images else ():
            if text.get_text() == "–":  # on white
                continue
            image = axes.images[0]
            column, row = (round(place) for place in text.get_position())
            cell = image.cmap(image.norm(image.get_array()[row, column]))
            dark, light = sorted((luminance(text.get_color()), luminance(cell)))
            assert (light + 0.05) / (dark + 0.05) > 3.5, (name, text.get_text())


def test_cells_have_the_numbers_of_the_probe(drawings: dict[str, Drawing]) -> None:
    probe = make_probe(**SMALL)
    first, _, after_at_clearest = (axes for _, axes in panels({"routing": drawings["routing"]}))
    assert after_at_clearest.get_title(loc="left") == "layer 2, after"
    shown = [text.get_text() for text in after_at_clearest.texts]
    assert shown == [percent(share) for row in probe["matrix"][2] for share in row]
    assert [label.get_text() for label in first.get_yticklabels()] == probe["domains"]
    labels = [label.get_text() for label in first.get_xticklabels()]
    assert labels == ["0 math", "1 code", "2 web", "3"]


def test_loss_changes_are_signed_and_the_frames_are_right(drawings: dict[str, Drawing]) -> None:
    forced, without = (axes for _, axes in panels({"losses": drawings["losses"]}))
    found = make_probe(**SMALL)["losses"]
    change = found["knocked_out"][0][1] - found["base"]["math"]
    assert without.texts[1].get_text() == f"{change:+.3f}"
    assert forced.texts[0].get_text() == "−0.012"
    for axes in (forced, without):
        frames = {(round(patch.get_x() + 0.47), round(patch.get_y() + 0.46)) for patch in axes.patches}
        assert frames == {(0, 0), (1, 1), (2, 2)}


def test_frames_follow_the_losses() -> None:
    """Only what its interval tells from chance is framed; nothing of copies, and not a number that is not there."""
    probe = make_probe(**SMALL)
    base = probe["losses"]["base"]
    probe["losses"]["forced"][0] = [base["math"] + 0.5, base["math"] + 0.1, base["math"] + 0.9]
    probe["losses"]["knocked_out"][2][0] = base["web"] + 3.0
    probe["losses"]["knocked_out"][0][1] = None
    probe["losses"]["forced_gap"][0] = interval(-0.1, 0.2)
    probe["losses"]["elsewhere_gap"][1] = interval(0.1, 0.2)
    probe["losses"]["copied"] = ["web"]
    figure = losses(probed(probe))
    assert figure is not None
    with look():
        forced, without = (axes for _, axes in panels({"losses": draw(figure)}))
    framed = [{(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in axes.patches} for axes in (forced, without)]
    assert framed == [{(1, 1)}, {(0, 0)}]
    assert without.texts[1].get_text() == "–"


def test_the_band_of_chance_is_that_of_the_probe() -> None:
    probe = make_probe(**SMALL)
    for row in probe["layers"]:
        row["separation_baseline"] = {"mean": 0.05, "p95": 0.11}
    with look():
        axes = draw(separation(probed(probe), None)).figure.axes[0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.05, 0.11))


def test_nothing_is_drawn_of_what_was_not_measured(tmp_path: Path) -> None:
    probe = probed(make_probe(**SMALL, nulls=True, names=False, top_k=1))
    assert losses(probe) is None
    assert not {"coactivation", "saturation"} & {figure.name for figure in expert_figures(probe, None)}
    dense = History.read("dense", write_metrics(tmp_path / "d", experts=0))
    assert [figure.name for figure in training_figures([dense])] == ["training-loss", "training-domains"]
    assert training_figures([]) == []


def test_a_type_that_did_not_occur_has_no_row() -> None:
    probe = make_probe(**SMALL)
    probe["token_types"]["tokens"][1] = 0
    figure = token_types(probed(probe))
    assert figure is not None
    with look():
        shown = [label.get_text() for label in draw(figure).figure.axes[0].get_yticklabels()]
    assert shown == ["word", "punctuation", "space"]


def test_a_run_cut_short_is_drawn_up_to_there(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "a", layers=3, experts=4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "window", "ste')
    found = {figure.name: figure for figure in training_figures([History.read("a", run)])}
    with look():
        balance = draw(found["training-balance"])
    _, _, active = balance.figure.axes
    assert list(active.lines[0].get_xdata()) == [10, 20, 30, 40, 50, 60]
    assert list(active.lines[0].get_ydata()) == [12, 9, 12, 12, 12, 12]
    assert list(active.lines[1].get_xdata()) == [20]  # the alarm


def test_a_page_and_a_picture_show_the_same_figure(drawings: dict[str, Drawing]) -> None:
    """One definition of each: titles, cells and lines."""
    after, before = probed(make_probe(**SMALL)), probed(make_probe(**SMALL, sharpness=0.1, seed=1))
    found = {figure.name: figure for figure in specialisation_figures(after, before)}
    (_, shown) = plot(found["routing"]).panels
    pictured = [axes for _, axes in panels({"routing": drawings["routing"]})]
    assert isinstance(shown, Grid)
    for slide, axes in zip(shown.slides, pictured, strict=True):
        assert [cell.text for row in slide for cell in row] == [text.get_text() for text in axes.texts]
    assert shown.cells == shown.slides[2]
    head, *rows = zip(*plot(found["accuracy"]).rows, strict=True)
    lines = dict(zip(plot(found["accuracy"]).head[1:], rows, strict=True))
    for line in drawings["accuracy"].figure.axes[0].lines:
        if line.get_label() in lines:
            assert list(line.get_ydata()) == pytest.approx(lines[line.get_label()], abs=1e-5)
    assert len(head) == 3


def test_names_in_a_chart_stay_text() -> None:
    probe = make_probe(("<b>math</b>", "code", "web"), **SMALL)
    charts = [plot(figure) for figure in specialisation_figures(probed(probe), None)]
    text = Section("figures", "Figures", charts).html
    assert "&lt;b&gt;math" in text
    assert "<b>math" not in text


def test_axes_have_round_ticks() -> None:
    assert [label for _, label in Scale(0, 647_168, 0, 300).ticks(4)] == ["0", "200 K", "400 K", "600 K"]
    assert [label for _, label in Scale(3.94, 4.5, 0, 300).ticks(5)] == ["4.0", "4.2", "4.4"]
    assert [label for _, label in Scale(1e-6, 1, 0, 300, "ratio").ticks(3)] == ["10⁻⁶", "0.001", "1"]
    assert spread([10, 11, 90], 15, 0, 100) == [10, 25, 90]
    assert spread([95, 99], 15, 0, 100) == [85, 100]


def test_small_helpers() -> None:
    assert [percent(value) for value in (0.0, 0.001, 0.126, 1.0)] == ["0", "<1", "13", "100"]
    assert [panels_in_a_row(count, 4) for count in (1, 4, 5, 6, 8, 9)] == [1, 4, 3, 3, 4, 3]


def test_rounding_is_not_drawn_as_a_change() -> None:
    loss = 2.6674070
    assert room_around(loss - 6e-8, loss, 0.06) == pytest.approx(0.05 * loss)
    assert room_around(loss - 0.1, loss, 0.06) == pytest.approx(0.006)
    assert room_around(0.0, 0.0, 0.06) == 1.0
