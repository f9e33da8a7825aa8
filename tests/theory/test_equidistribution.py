"""The starts of searches: inside the cube, apart from each other, and with the mean of a product of uniform numbers."""

import numpy as np
import pytest

from icl_lab.theory.equidistribution import equidistributed


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_points_fill_the_cube(dim):
    points = equidistributed(2_000, dim)
    assert points.shape == (2_000, dim)
    assert np.all((points > 0) & (points < 1))
    # An integral of a product, to the accuracy of 2000 evenly spread points; random ones are off by 0.03 for d = 5.
    np.testing.assert_allclose(np.mean(np.prod(np.pi / 2 * np.sin(np.pi * points), axis=1)), 1.0, atol=0.01)
    assert len(np.unique(points[:, 0])) == 2_000


def test_one_dimension_is_the_golden_ratio():
    golden = (1 + np.sqrt(5)) / 2
    np.testing.assert_allclose(equidistributed(3, 1)[:, 0], (0.5 + np.arange(1, 4) / golden) % 1, rtol=1e-13)
