"""Closed forms of weighted steps on correlated tasks, against values worked out before and against each other."""

import numpy as np
import pytest

from icl_lab.theory.descent import li2025

DRIFTS = {  # d, N, a, s2: smallest risk, risk of equal weights
    (4, 12, 0.9, 0.2): (2.693209280905203, 2.965314038525757),
    (3, 6, 0.7, 0.0): (2.566326332473773, 2.7127873711554544),
    (8, 24, 0.95, 0.25): (5.042209359236045, 5.6646748025135825),
}


def drift(d, N, a, s2):
    place = np.arange(N + 1)
    joint = a ** np.abs(place[:, None] - place[None, :])
    return li2025.CorrelatedTasks(joint[:-1, :-1], joint[:-1, -1], d, s2)


@pytest.mark.parametrize("case", DRIFTS)
def test_risks_are_those_worked_out_before(case):
    problem, (minimum, equal) = drift(*case), DRIFTS[case]
    assert li2025.minimum_risk(problem) == pytest.approx(minimum, rel=1e-13)
    assert li2025.best_equal_weight(problem)[1] == pytest.approx(equal, rel=1e-13)
    assert li2025.risk(problem, li2025.best_weights(problem)) == pytest.approx(minimum, rel=1e-13)
    assert li2025.weights_norm(problem) == pytest.approx(np.linalg.norm(li2025.best_weights(problem)), rel=1e-13)


@pytest.mark.parametrize("case", DRIFTS)
def test_the_best_decay_is_the_lowest_of_a_grid(case):
    problem = drift(*case)
    decay, lowest = li2025.best_decay(problem)
    powers = np.linspace(0.01, 1, 2001)[:, None] ** np.arange(case[1])[::-1][None, :]
    squares = np.sum((powers @ problem.matrix) * powers, axis=1)
    grid = case[0] * (1 - (powers @ problem.query) ** 2 / squares)
    assert lowest <= grid.min()
    assert lowest == pytest.approx(grid.min(), rel=1e-5)
    assert 0 < decay <= 1


def test_group_weights_are_those_worked_out_before():
    found = li2025.group_weights((6, 6), (0.3, 0.9), 0.27, 4, 0.2)
    np.testing.assert_allclose(found, (0.015486631991375687, 0.0781171121583903), rtol=1e-13)


def test_the_gain_is_the_difference_of_two_lengths():
    before, after = drift(4, 11, 0.9, 0.2), drift(4, 12, 0.9, 0.2)
    difference = li2025.minimum_risk(before) - li2025.minimum_risk(after)
    assert li2025.gain_of_the_oldest(after) == pytest.approx(difference, rel=1e-11)
