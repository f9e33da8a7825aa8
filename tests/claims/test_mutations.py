"""A planted error is caught: one term of one formula is wrong, and the claims that stand on it fail.

Each case replaces one function of the theory (or turns the query token's handling round) by a version with a plausible mistake
and names a claim that must notice.
"""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from icl_lab.models import LinearSelfAttention
from icl_lab.theory.regression import (
    bayes,
    lsa,
    nonlinear,
    random_covariance,
    stability,
    structured,
    timecourse,
    transfer,
    zhang2023,
    zhangsaxe2025,
)
from tests.claims.claim_runs import failed_checks, run_claim

pytestmark = pytest.mark.claims


def gamma_without_its_trace_term(right):
    return lambda covariance, length: (1 + 1 / length) * covariance


def context_moment_without_its_square_term(right):
    # E[m m^T] as if the sample covariance did not fluctuate.
    def moment(problem):
        lam, om = problem.covariance, problem.task_covariance
        return lam @ om @ lam + (np.trace(lam @ om) + problem.noise_variance) / problem.context_length * lam

    return moment


def optimum_without_noise(right):
    return lambda problem: right(dataclasses.replace(problem, noise_variance=0.0))


def step_with_n_instead_of_n_minus_one(right):
    def step_size(moments, dim, length, noise):
        return moments.correlation / (moments.second_times_norm + noise * dim + length * moments.correlation)

    return step_size


def least_squares_without_its_minus_one(right):
    return lambda dim, length, noise: noise * dim / (length - dim)


def eigenvalues_of_one_example_fewer(right):
    return lambda statistic, dim, count: right(statistic, dim, count - 1)


def time_on_the_clock_of_the_whole_loss(right):
    return lambda problem, times, sigma: right(problem, 2 * np.asarray(times), sigma)


def shrinkage_without_one_pairing(right):
    return lambda dim, length: 1 / (3 + (dim + 3) / length)


def gains_without_the_trace(right):
    return lambda spectrum, length: np.full_like(spectrum, 1 + 1 / length)


def sizes_of_square_root(right):
    return lambda spectrum, length: right(spectrum, length) ** 1.5


def exponent_of_the_trace(right):
    return lambda lam, om: 1 - np.linalg.norm(lam @ om @ lam, 2) / np.trace(lam @ om @ lam)


def second_moment_for_a_covariance(right):
    def distribution(label, vector, covariance, noise=0.0):
        made = right(label, vector, covariance, noise)
        mean = covariance @ made.slope
        return made._replace(product_covariance=made.product_covariance + np.outer(mean, mean))

    return distribution


def factors_in_the_other_order(right):
    def velocity(problem, u, inner):
        du, transposed = right(problem, u, inner.T)
        return du, transposed.T

    return velocity


CASES = [
    (zhang2023, "gamma", gamma_without_its_trace_term, "zhang2023.thm4.1"),
    (zhang2023, "gamma", gamma_without_its_trace_term, "zhang2023.thm4.2-linear"),
    (lsa, "response_moment", context_moment_without_its_square_term, "lab.risk-shift"),
    (lsa, "optimal_preconditioner", optimum_without_noise, "lab.balanced-limit"),
    (structured, "general_velocity", factors_in_the_other_order, "zhang2023.lem5.2"),
    (transfer, "single_index_distribution", second_moment_for_a_covariance, "zhang2023.thm4.2"),
    (nonlinear, "step_size", step_with_n_instead_of_n_minus_one, "mahankali2023.thm3"),
    (bayes, "ols_risk", least_squares_without_its_minus_one, "lab.ols"),
    (bayes, "eigenvalue_mean", eigenvalues_of_one_example_fewer, "lab.bayes"),
    (timecourse, "logistic", time_on_the_clock_of_the_whole_loss, "lab.logistic"),
    (random_covariance, "exponential_preconditioner", shrinkage_without_one_pairing, "zhang2023.residual"),
    (zhangsaxe2025, "gains", gains_without_the_trace, "zhangsaxe2025.separate"),
    (zhangsaxe2025, "head_sizes", sizes_of_square_root, "zhangsaxe2025.separate"),
    (stability, "escape_exponent", exponent_of_the_trace, "lab.escape-exponent"),
]

# Sizes at which each claim runs in seconds.
SETTINGS = {
    "zhang2023.thm4.1": {"d": 2, "N": 6},
    "zhang2023.thm4.2": {"d": 2, "N": 6, "label": "relu", "samples": 100_000},
    "mahankali2023.thm3": {"d": 2, "N": 4},
    "zhang2023.residual": {"d": 2, "samples": 50_000},
    "lab.ols": {"d": 2, "N": 8, "samples": 50_000},
    "lab.bayes": {"d": 2, "N": 6, "samples": 50_000},
    "lab.escape-exponent": {"starts": 1},
}


def failing(id):
    return failed_checks(run_claim(id, SETTINGS.get(id, {})))


@pytest.mark.parametrize(("module", "name", "planted", "id"), CASES, ids=[f"{case[2].__name__}-{case[3]}" for case in CASES])
def test_a_planted_error_is_caught(monkeypatch, module, name, planted, id):
    monkeypatch.setattr(module, name, planted(getattr(module, name)))
    assert failing(id)


@pytest.mark.parametrize("id", sorted({case[3] for case in CASES}))
@pytest.mark.slow
def test_nothing_fails_without_one(id):
    assert not failing(id)


@pytest.mark.slow
def test_the_query_token_handled_the_other_way_is_caught(monkeypatch):
    population = importlib.import_module("icl_lab.objectives.exact.regression")  # hidden behind the function of the same name
    right = population.mean_squared_error
    monkeypatch.setattr(population, "mean_squared_error", lambda *arguments: right(*arguments[:-1], not arguments[-1]))
    jax.clear_caches()
    try:
        assert {"risk_query_in", "risk_query_out"} <= failing("lab.exact-loss")
    finally:
        jax.clear_caches()


def test_a_normaliser_of_the_wrong_length_is_caught(monkeypatch):
    right = LinearSelfAttention.normaliser_at
    monkeypatch.setattr(LinearSelfAttention, "normaliser_at", lambda self, count: right(self, count) + 1)
    jax.clear_caches()
    try:
        assert failing("lab.exact-loss")
    finally:
        jax.clear_caches()
