"""The boundary report: its numbers, its words, its picture."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from smolmoe.core.statistics import Interval
from smolmoe.reports.boundary import BoundaryReport, Curve, HeldOutLoss, boundary_text, plot_boundary

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
AFTER = Curve("moe-trained", [(10240 + 256 * i, 4 - i * 0.01) for i in range(1, 41)], [(10240, 3.5), (20480, 3.2)])
CONTINUED = Curve("dense-trained", [], [(20480, 3.3)])


def test_the_jump_is_the_difference_of_the_two_losses_at_the_boundary():
    assert REPORT.jump == pytest.approx(4e-8)
    assert REPORT.to_json()["jump"] == REPORT.jump
    assert REPORT.to_json()["moe_trained"]["by_domain"] == {"code": 4.25, "math": 0.75}


def test_the_table_has_every_model_and_domain():
    lines = boundary_text(REPORT).splitlines()
    assert lines[0].split()[-3:] == ["all", "code", "math"]
    rows = {line[:20].strip(): line.split()[-3:] for line in lines[2:6]}
    assert rows == {
        "dense": ["3.5000", "4.5000", "1.0000"],
        "moe": ["3.5000", "4.5000", "1.0000"],
        "moe-trained": ["3.2000", "4.2500", "0.7500"],
        "dense-trained": ["3.3000", "4.3750", "0.8750"],
    }
    assert len({len(line) for line in lines[:6]}) == 1


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (
            Interval(-0.1, -0.12, -0.08),
            "moe-trained and dense-trained: moe-trained is better, -0.1000 nats per token, "
            "95% interval [-0.1200, -0.0800] over 40 documents, one seed.",
        ),
        (Interval(0.1, 0.08, 0.12), "dense-trained is better, +0.1000"),
        (Interval(-0.1, -0.3, 0.1), "no difference seen: -0.1000 nats per token, 95% interval [-0.3000, +0.1000]"),
    ],
)
def test_no_more_is_claimed_than_was_measured(difference, words):
    assert words in boundary_text(dataclasses.replace(REPORT, difference=difference))


def test_without_the_dense_model_trained_on():
    text = boundary_text(dataclasses.replace(REPORT, dense_continued=None, difference=None))
    assert "dense-trained" not in text
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
        held_out = [line for line in drawn if "batches" not in line.get_label()]
        assert len({(line.get_linestyle(), line.get_marker()) for line in held_out}) == len(held_out)
    assert any("3.5000" in text.get_text() for axes in figures[0].axes for text in axes.texts)


def test_a_model_has_one_colour_in_both_panels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    plot_boundary(tmp_path / "a.png", REPORT, BEFORE, AFTER, CONTINUED)
    colours = {}
    for axes in figures[0].axes:
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                colours.setdefault(line.get_label().split(",")[0], set()).add(line.get_color())
    assert set(colours) == {"dense", "moe-trained", "dense-trained"}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3
