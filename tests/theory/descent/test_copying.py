"""Copies of successors: what they hold, what a softmax leaves of them, and what they add to a step."""

import numpy as np
import pytest

from icl_lab.theory.descent import copying, vonoswald2022


def test_merged_successors():
    merged = copying.merged_successors(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_array_equal(merged, [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 0, 0]])


@pytest.mark.parametrize(("score", "weight"), [(1.0, 0.213730), (5.0, 0.936874), (10.0, 0.999546207), (20.0, 1 - 2.06e-8)])
def test_the_reference_weights_of_a_softmax_over_eleven_keys(score, weight):
    scores = np.append(score, np.zeros(10))
    assert copying.successor_weight(score, 11) == pytest.approx(weight, abs=5e-7)
    assert copying.successor_weight(score, 11) == pytest.approx(np.exp(score) / np.sum(np.exp(scores)), rel=1e-14)


def test_the_missing_weight_at_a_large_score():
    assert 1 - copying.successor_weight(20.0, 11) == pytest.approx(2.06e-8, rel=2e-3)


def test_contamination_is_a_step_on_the_label_tokens(rng):
    # Label tokens are examples whose input is (0, .., 0, y_j) and whose label is the last coordinate of x_{j+1}.
    x, y, query = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)
    inputs = np.zeros((5, 3))
    inputs[:, -1] = y
    labels = np.vstack([x[1:], query[None]])[:, -1:]
    step = vonoswald2022.gradient_step(np.zeros((1, 3)), inputs, labels, 0.6)
    assert copying.contamination(x, y, query, 0.6) == pytest.approx((step @ query)[0], rel=1e-13)
