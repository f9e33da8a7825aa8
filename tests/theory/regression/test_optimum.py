"""Balanced and unbalanced weights of a given product."""

import numpy as np
import pytest

from icl_lab.theory.regression.optimum import balanced_weights


@pytest.mark.parametrize("imbalance", [0.0, 0.5, -2.0])
def test_the_weights_have_the_product_and_the_imbalance_asked_for(imbalance, rng):
    product = rng.normal(size=(3, 3))
    w_pv, w_kq = balanced_weights(product, imbalance)
    u, inner = w_pv[-1, -1], w_kq[:3, :3]
    np.testing.assert_allclose(u * inner.T, product, atol=1e-14)
    assert u**2 - np.sum(inner**2) == pytest.approx(imbalance, abs=1e-13)
    assert u > 0
    assert np.count_nonzero(w_pv) == 1
    assert np.count_nonzero(w_kq) == 9


def test_an_imbalance_by_hand():
    # u^2 - U^2 = 3 and u U = 2: u = 2, U = 1.
    w_pv, w_kq = balanced_weights(np.array([[2.0]]), 3.0)
    assert w_pv[1, 1] == pytest.approx(2.0, rel=1e-15)
    assert w_kq[0, 0] == pytest.approx(1.0, rel=1e-15)
