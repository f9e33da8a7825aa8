import numpy as np
import pytest


@pytest.fixture
def agrees():
    """Checks a sample mean against a closed form: within 5 standard errors of the sample itself in every entry.

    5 standard errors: a false alarm below 1e-6 an entry, at fixed keys. The floor is rounding.
    """

    def check(samples, expected, standard_errors=5.0):
        samples, expected = np.asarray(samples), np.asarray(expected)
        assert samples.shape[1:] == expected.shape, (samples.shape, expected.shape)
        error = np.abs(samples.mean(axis=0) - expected)
        spread = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
        return bool(np.all(error <= standard_errors * spread + 1e-12 * (1 + np.abs(expected))))

    return check
