"""Best coefficients of several gradient steps against known values, matrices and sampled contexts."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.descent import descent_steps, descent_variants
from icl_lab.theory.descent.descent_steps import Rule

UNIFORM = ("uniform", 10, 10, 0.5)
NORMAL = ("gaussian", 5, 20, 1.0)


@pytest.mark.parametrize(
    ("setting", "steps", "shared", "shared_loss", "separate", "separate_loss"),
    [
        (UNIFORM, 2, 5.984172260, 0.15661517084, (4.001919659, 11.568210723), 0.14126919629),
        (UNIFORM, 3, 5.868300314, 0.13277023171, (3.358175841, 5.656670598, 18.8566009), 0.11009275583),
        (NORMAL, 3, 0.715586724, 0.13417110892, (0.422408534, 0.689126087, 1.71421738), 0.06680421469),
    ],
)
def test_gradient_steps(setting, steps, shared, shared_loss, separate, separate_loss):
    distribution, dim, length, scale = setting
    equal = descent_steps.best_shared_step(Rule.exact(distribution, dim, length, scale, 2 * steps), steps)
    own = descent_steps.best_steps(distribution, dim, length, scale, steps)
    np.testing.assert_allclose([equal.step_sizes[0], equal.loss], [shared, shared_loss], rtol=1e-9)
    np.testing.assert_allclose(own.step_sizes, separate, rtol=1e-8)
    np.testing.assert_allclose(own.loss, separate_loss, rtol=1e-9)


@pytest.mark.parametrize(
    ("setting", "tied", "etas", "gamma", "loss"),
    [
        (NORMAL, True, (1.491357650, 1.491357650), 0.010248555, 0.05936269356),
        (NORMAL, False, (0.516762320, 3.474663620), 0.022439357, 0.02875057632),
        (("gaussian", 2, 4, 1.0), False, (0.525361778, 2.190594684), 0.044511157, 0.13284034842),
    ],
)
def test_two_corrected_steps(setting, tied, etas, gamma, loss):
    distribution, dim, length, scale = setting
    best = descent_steps.best_corrected(Rule.exact(distribution, dim, length, scale, 8), 2, tied, 16)
    np.testing.assert_allclose(best.step_sizes, etas, rtol=1e-8)
    np.testing.assert_allclose(best.curvatures[0], gamma, rtol=1e-7)
    np.testing.assert_allclose(best.loss, loss, rtol=1e-9)


def test_three_corrected_steps():
    best = descent_steps.best_corrected(Rule.exact(*NORMAL, degree=26), 3, False, 60)
    np.testing.assert_allclose(best.step_sizes, (0.338297059, 2.090841425, 8.568056811), rtol=1e-8)
    np.testing.assert_allclose(best.loss, 0.00048065533, rtol=1e-8)


def test_the_residual_is_that_of_matrices():
    generator = np.random.default_rng(0)
    inputs, etas, gammas = generator.standard_normal((6, 4)), np.array([0.3, 0.5, 0.2]), np.array([0.02, 0.01, 0.03])
    moved, labels, query = inputs, inputs, np.eye(4)
    # Labels of all unit tasks: what is left of W x = x.
    answers = np.zeros((4, 4))
    for eta, gamma in zip(etas, gammas, strict=True):
        gram, step = moved.T @ moved, eta / 6 * labels.T @ moved
        answers, labels = answers + query @ step.T, labels - moved @ step.T
        moved, query = moved - gamma * moved @ gram, query - gamma * query @ gram
    nodes, basis = np.linalg.eigh(inputs.T @ inputs)
    rho = (basis * descent_variants.gdpp_polynomials(nodes, etas, gammas, 6)[1]) @ basis.T
    np.testing.assert_allclose(np.eye(4) - answers, rho, atol=1e-13)


def test_rational_arithmetic_and_rule_agree():
    moments = descent_steps.gram_moments.gaussian_moments(5, 20, 26)
    etas, gammas = np.array([0.3, 2.0, 5.0]), np.array([0.01, 0.03, 0.0])
    exact = descent_steps.loss_from_moments(moments, etas, gammas, 20, 1.0)
    np.testing.assert_allclose(descent_steps.loss(Rule.exact(*NORMAL, degree=26), etas, gammas), exact, rtol=1e-9)


def test_a_sampled_rule_has_nearly_the_exact_loss():
    sampled = Rule.of_contexts(np.random.default_rng(1).uniform(-0.5, 0.5, (20_000, 10, 10)), 1 / 12)
    coefficients = np.full(2, 6.0), np.zeros(2)
    exact = descent_steps.loss(Rule.exact(*UNIFORM, degree=4), *coefficients)
    np.testing.assert_allclose(descent_steps.loss(sampled, *coefficients), exact, rtol=0.01)


def test_losses_away_from_the_training_distribution():
    np.testing.assert_allclose(
        descent_steps.anisotropic_step(np.diag([1, 1, 0.25, 0.0625, 1]), 20), (0.834501591, 0.376789552), rtol=2e-9
    )
    noisy = [descent_steps.replaced_labels_loss(200 / 33, 10, 10, 1 / 12, 1.8, m) for m in (0, 2, 4, 6, 8)]
    np.testing.assert_allclose(noisy, [0.206228956, 0.256819032, 0.315911642, 0.383506785, 0.459604462], rtol=3e-9)
    scaled = [descent_steps.normalised_inputs_loss(200 / 33, 10, 10, alpha) for alpha in (0.5, 1.0, 2.0, 5.0)]
    np.testing.assert_allclose(scaled, [1.237461e-2, 4.522195e-2, 1.298260e-1, 3.438910], rtol=1e-6)


def test_one_corrected_layer_is_refused():
    with pytest.raises(InvalidValueError, match="the last curvature has no effect"):
        descent_steps.best_corrected(Rule.exact(*NORMAL, degree=2), 1, True, 1)
