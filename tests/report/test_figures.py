"""Figures hold the numbers they are given, and save them beside the image."""

import csv

import numpy as np
from matplotlib.figure import Figure

from icl_lab import report


def test_decay_draws_positive_values_on_log_axes_and_shows_the_start():
    axes = Figure().subplots()
    report.decay(axes, np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 2.0, 1.0, 0.0]), "loss")
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0.1, 1.0, 2.0]
    assert line.get_ydata().tolist() == [4.0, 2.0, 1.0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_heat_maps_show_learned_and_closed_form_on_one_scale_and_their_difference_on_another():
    figure = Figure()
    row = figure.subplots(1, 3)
    learned, expected = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [0.5, 1.0]])
    report.heat_maps(list(row), learned, expected, "W")
    images = [axes.images[0] for axes in row]
    assert [image.get_clim() for image in images] == [(-2.0, 2.0), (-2.0, 2.0), (-0.5, 0.5)]
    np.testing.assert_array_equal(images[2].get_array(), learned - expected)


def test_risk_curves_draw_theory_as_a_line_and_measurements_as_markers_without_rounding_noise():
    axes = Figure().subplots()
    risks = {"model": [2.0, 1.0], "ols": [1.5, 1e-30], "exact": [1e-30, 1e-31]}
    report.risk_curves(axes, [5, 10], risks, {name: [0.1, 0.1] for name in risks}, [2.1, 1.1], trained_at=10)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(legend) == {"model", "ols", "closed form", "length of training"}
    (closed_form,) = (line for line in axes.lines if line.get_label() == "closed form")
    assert closed_form.get_linestyle() == "-"
    assert list(closed_form.get_ydata()) == [2.1, 1.1]
    markers = {container.get_label(): container[0] for container in axes.containers}
    assert markers["model"].get_linestyle() == "None"
    np.testing.assert_array_equal(markers["ols"].get_ydata(), [1.5, np.nan])


def test_invariant_drift_draws_a_curve_a_quantity():
    axes = Figure().subplots()
    report.invariant_drift(axes, np.array([0.0, 1.0, 2.0]), {"balance": np.array([0.0, 1e-12, 0.0])})
    (line,) = axes.lines
    assert line.get_ydata().tolist() == [1e-12, 1e-18]


def test_saved_figure_has_its_numbers_beside_it_in_full_precision(tmp_path):
    figure = Figure(layout="constrained")
    figure.subplots()
    with report.house_style():
        report.save(figure, tmp_path / "f.png", "What to see.", {"x": [1, 2], "m": np.array([[0.1 + 0.2]])})
    assert (tmp_path / "f.png").stat().st_size > 1000
    with (tmp_path / "f.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["x", "m"], ["1", repr(0.1 + 0.2)], ["2", ""]]
    assert figure._supxlabel.get_text() == "What to see."
