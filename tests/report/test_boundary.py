"""The boundary report: its numbers, its words, its picture."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from smolmoe.interval import Interval
from smolmoe.report.boundary import BoundaryReport, Curve, HeldOutLoss, boundary_text, plot_boundary

DENSE = HeldOutLoss(3.5, {"code": 4.5, "math": 1.0})
REPORT = BoundaryReport(
    documents=40,
    tokens=12_345,
    dense=DENSE,
    moe=HeldOutLoss(3.50000004, {"code": 4.5, "math": 1.0}),
    moe_trained=HeldOutLoss(3.2, {"code": 4.25, "math": 0.75}),
    dense_continued=HeldOutLoss(3.3, {"code": 4.375, "math": 0.875}),
    difference=Interval(-0.1, -0.12, -0.08),
)
BEFORE = Curve("dense", [(256 * i, 8 - i * 0.1) for i in range(1, 41)], [(5120, 5.0), (10240, 3.5)])
AFTER = Curve("MoE", [(10240 + 256 * i, 4 - i * 0.01) for i in range(1, 41)], [(10240, 3.5), (20480, 3.2)])
CONTINUED = Curve("dense, trained on", [], [(20480, 3.3)])


def test_the_jump_is_the_difference_of_the_two_losses_at_the_boundary():
    assert REPORT.jump == pytest.approx(4e-8)
    assert REPORT.to_json()["jump"] == REPORT.jump
    assert REPORT.to_json()["moe_trained"]["by_domain"] == {"code": 4.25, "math": 0.75}


def test_the_table_has_every_model_and_domain():
    lines = boundary_text(REPORT).splitlines()
    assert lines[0].split()[-3:] == ["all", "code", "math"]
    rows = {line[:20].strip(): line.split()[-3:] for line in lines[2:6]}
    assert rows == {
        "dense, before": ["3.5000", "4.5000", "1.0000"],
        "MoE, just converted": ["3.5000", "4.5000", "1.0000"],
        "MoE, trained on": ["3.2000", "4.2500", "0.7500"],
        "dense, trained on": ["3.3000", "4.3750", "0.8750"],
    }
    assert len({len(line) for line in lines[:6]}) == 1


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (Interval(-0.1, -0.12, -0.08), "the MoE is better than the dense model: -0.1000 [-0.1200, -0.0800]"),
        (Interval(0.1, 0.08, 0.12), "the MoE is worse than the dense model"),
        (Interval(-0.1, -0.3, 0.1), "the MoE is not told apart from the dense model"),
    ],
)
def test_no_more_is_claimed_than_was_measured(difference, words):
    assert words in boundary_text(dataclasses.replace(REPORT, difference=difference))


def test_without_the_dense_model_trained_on():
    text = boundary_text(dataclasses.replace(REPORT, dense_continued=None, difference=None))
    assert "dense, trained on" not in text
    assert "After the same further batches" not in text


@pytest.mark.parametrize("continued", [CONTINUED, None])
def test_the_picture_is_a_png_of_a_readable_size(tmp_path, continued):
    plot_boundary(tmp_path / "a.png", REPORT, BEFORE, AFTER, continued)
    data = (tmp_path / "a.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1200
    assert height >= 500


def test_the_picture_tells_the_models_apart_without_colour(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    plot_boundary(tmp_path / "a.png", REPORT, BEFORE, AFTER, CONTINUED)
    for axes in figures[0].axes:
        assert "tokens" in axes.get_xlabel()
        assert "loss" in axes.get_ylabel()
        drawn = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert {text.get_text() for text in axes.get_legend().get_texts()} == {line.get_label() for line in drawn}
        looks = {(line.get_linestyle(), line.get_marker(), line.get_color()) for line in drawn}
        assert len(looks) == len(drawn)
        colours = {line.get_color() for line in drawn}
        assert all(colour == "black" or colour.replace(".", "").isdigit() for colour in colours), colours
    assert any("3.5000" in text.get_text() for axes in figures[0].axes for text in axes.texts)
