"""Training and testing a decoder under covariate distributions."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.training import covariate_shift
from icl_lab.training.covariate_shift import Training
from icl_lab.training.prefixes import Curriculum

TINY = Training(width=8, layers=1, heads=2, steps=2, batch=4, curriculum=Curriculum(1, 1, 1, 1))


@pytest.mark.slow
def test_an_untrained_like_decoder_errs_like_the_zero_predictor():
    decoder = covariate_shift.train_under("random", 2, 3, 5, TINY, seed=0)
    assert decoder.examples == 6
    mean, error = covariate_shift.shifted_risk(decoder, "random", 4.0, 5, seed=0, prompts=1000)
    assert mean.shape == error.shape == (6,)
    # Per coordinate the zero predictor has the mean eigenvalue; two steps of training hardly change that.
    assert np.all(np.abs(mean - 4.0) < 1.0 + 4 * error)


def test_a_distribution_has_a_name():
    assert covariate_shift.distribution("fixed", 2) is None
    assert covariate_shift.distribution("random", 2, 4.0).scale == 4.0
    with pytest.raises(InvalidValueError, match="fixed, random"):
        covariate_shift.distribution("uniform", 2)
