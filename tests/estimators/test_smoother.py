"""Kernel smoothing: a loop over the examples, its limits, its symmetries, a softmax head, and what it refuses."""

import jax
import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import LSAWeights, SoftmaxSelfAttention
from icl_lab.tasks.prompt import Prompt
from tests.prompts import random_prompt


def by_hand(prompt, bandwidth, kernel):
    """The weighted mean, one example after another."""
    total, answer = 0.0, 0.0
    for x, y in zip(prompt.inputs, prompt.labels, strict=True):
        if kernel == "gaussian":
            weight = np.exp(-(np.linalg.norm(x - prompt.query) ** 2) / (2 * bandwidth**2))
        else:
            inner = sum((a.conjugate() * b).real for a, b in zip(x, prompt.query, strict=True))
            weight = np.exp((inner if kernel == "exponential" else -inner) / bandwidth**2)
        total, answer = total + weight, answer + weight * y
    return answer / total


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("kernel", estimators.EXPONENTS)
def test_it_is_the_weighted_mean_of_the_labels(kernel, complex_data):
    prompt = random_prompt(0, complex_data=complex_data)
    for bandwidth in (0.6, 1.0, 2.5):
        answer = estimators.kernel_smoother(prompt, bandwidth, kernel)
        np.testing.assert_allclose(answer, by_hand(prompt, bandwidth, kernel), rtol=1e-12)
        np.testing.assert_allclose(estimators.kernel_smoother(prompt, bandwidth, kernel, -3.0), -3 * answer, rtol=1e-14)


@pytest.mark.parametrize("kernel", estimators.EXPONENTS)
def test_a_wide_kernel_takes_the_mean_of_all_labels(kernel):
    prompt = random_prompt(1)
    np.testing.assert_allclose(estimators.kernel_smoother(prompt, 1e7, kernel), prompt.labels.mean(axis=0), rtol=1e-12)


def test_a_narrow_gaussian_kernel_takes_the_label_of_the_nearest_input():
    prompt = random_prompt(2)
    nearest = np.argmin(np.linalg.norm(prompt.inputs - prompt.query, axis=1))
    for bandwidth in (1e-2, 1e-150):
        np.testing.assert_allclose(estimators.kernel_smoother(prompt, bandwidth), prompt.labels[nearest], rtol=1e-12)


@pytest.mark.parametrize("kernel", estimators.KERNELS)
def test_the_order_of_the_examples_does_not_matter(kernel, rng):
    prompt = random_prompt(3)
    order = rng.permutation(7)
    shuffled = Prompt(prompt.inputs[order], prompt.labels[order], prompt.query, prompt.target)
    answers = [estimators.kernel_smoother(p, 0.8, kernel) for p in (prompt, shuffled)]
    np.testing.assert_allclose(*answers, rtol=1e-13)


def test_on_inputs_of_one_length_the_two_kernels_agree():
    prompt = random_prompt(4)
    unit = prompt.inputs / np.linalg.norm(prompt.inputs, axis=1, keepdims=True)
    sphere = Prompt(unit, prompt.labels, prompt.query, prompt.target)
    answers = [estimators.kernel_smoother(sphere, 0.7, kernel) for kernel in ("gaussian", "exponential")]
    np.testing.assert_allclose(*answers, rtol=1e-13)


@pytest.mark.parametrize(("sign", "kernel"), [(1, "exponential"), (-1, "opposite")])
def test_a_softmax_head_smooths_the_labels(sign, kernel):
    prompt = random_prompt(5, k=1)
    w_kq, w_pv = sign * np.diag([0.5, 0.5, 0.5, 0.0]), np.diag([0.0, 0.0, 0.0, 1.7])
    answer = SoftmaxSelfAttention(query_in_sum=False)(LSAWeights(w_pv=w_pv, w_kq=w_kq), prompt)
    np.testing.assert_allclose(estimators.kernel_smoother(prompt, 2**0.5, kernel, 1.7), answer, rtol=1e-12)


def test_two_opposite_heads_are_the_odd_smoother_which_is_odd_in_the_query():
    prompt = random_prompt(6, k=1)
    signs = np.array([1.0, -1.0])[:, None, None]
    weights = LSAWeights(w_pv=signs * np.diag([0.0, 0.0, 0.0, 1.7]), w_kq=signs * np.diag([0.5, 0.5, 0.5, 0.0]))
    odd = estimators.kernel_smoother(prompt, 2**0.5, "odd", 1.7)
    np.testing.assert_allclose(odd, SoftmaxSelfAttention(query_in_sum=False)(weights, prompt), rtol=1e-12)
    hand = 1.7 * (by_hand(prompt, 2**0.5, "exponential") - by_hand(prompt, 2**0.5, "opposite"))
    np.testing.assert_allclose(odd, hand, rtol=1e-11)
    behind = Prompt(prompt.inputs, prompt.labels, -prompt.query, prompt.target)
    np.testing.assert_allclose(estimators.kernel_smoother(behind, 2**0.5, "odd", 1.7), -odd, rtol=1e-12)


def test_a_wide_odd_smoother_is_a_gradient_step_on_centred_inputs():
    prompt = random_prompt(7)
    centred = Prompt(prompt.inputs - prompt.inputs.mean(axis=0), prompt.labels, prompt.query, prompt.target)
    wide = estimators.kernel_smoother(prompt, 1e3, "odd", 1e6 * 0.35)
    # Rounding is multiplied by h^2; the next term is of relative size h^-4.
    np.testing.assert_allclose(wide, estimators.gradient_descent(centred, 0.7), rtol=0, atol=1e-9)


def test_it_maps_over_prompts_and_derives_by_its_bandwidth():
    prompts = jax.tree.map(lambda *p: np.stack(p), *(random_prompt(seed) for seed in range(3)))
    smoother = estimators.named("kernel_smoother", bandwidth=np.asarray(0.9), kernel="exponential")
    answers = jax.jit(jax.vmap(smoother))(prompts)
    np.testing.assert_allclose(answers[2], by_hand(random_prompt(2), 0.9, "exponential"), rtol=1e-12)
    slope = jax.jacfwd(lambda h: estimators.kernel_smoother(random_prompt(2), h))(0.9)
    ahead, back = (by_hand(random_prompt(2), 0.9 + step, "gaussian") for step in (1e-5, -1e-5))
    # Central differences: step^2 times a third derivative.
    np.testing.assert_allclose(slope, (ahead - back) / 2e-5, rtol=1e-7)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, np.inf, np.nan])
def test_a_bandwidth_that_is_not_positive_and_finite_is_refused(bandwidth):
    with pytest.raises(InvalidValueError, match="`bandwidth` must be a finite number > 0"):
        estimators.kernel_smoother(random_prompt(0), bandwidth)


def test_unknown_kernels_infinite_scales_and_broken_prompts_are_refused():
    prompt = random_prompt(0)
    with pytest.raises(InvalidValueError, match=r"`kernel` must be one of gaussian, exponential, opposite .*got 'cosine'"):
        estimators.kernel_smoother(prompt, 1.0, "cosine")
    with pytest.raises(InvalidValueError, match="`scale` must be finite"):
        estimators.kernel_smoother(prompt, 1.0, scale=np.inf)
    labels = prompt.labels.copy()
    labels[0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"`prompt\.labels` holds 1 NaN"):
        estimators.kernel_smoother(Prompt(prompt.inputs, labels, prompt.query, prompt.target), 1.0)
