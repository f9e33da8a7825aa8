import functools

import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import (
    ComplexGaussianStart,
    ConstantStart,
    DiagonalUnitary,
    GaussianStart,
    HaarOrthogonal,
    LinearDynamics,
    RademacherStart,
    RotationBlocks,
    SparseStart,
)

DIM = 4
TRANSITIONS = {
    "diagonal_unitary": DiagonalUnitary(),
    "haar": HaarOrthogonal(),
    "blocks": RotationBlocks(),
    "blocks_haar": RotationBlocks(haar_basis=True),
}
STARTS = {
    "gaussian": GaussianStart(0.8),
    "complex_gaussian": ComplexGaussianStart(0.8),
    "sparse": SparseStart(1.3),
    "rademacher": RademacherStart(0.5),
    "constant": ConstantStart(1.2),
}


@functools.cache
def transitions(name):
    distribution = TRANSITIONS[name]
    keys = jax.random.split(jax.random.key(1), 40_000)
    return np.asarray(jax.vmap(lambda k: distribution.sample(k, DIM))(keys))


@functools.cache
def starts(name):
    keys = jax.random.split(jax.random.key(2), 40_000)
    return np.asarray(jax.vmap(lambda k: STARTS[name].sample(k, DIM))(keys))


@pytest.mark.parametrize("name", TRANSITIONS)
def test_transitions_are_unitary(name):
    draws = transitions(name)
    gram = np.conj(np.swapaxes(draws, 1, 2)) @ draws
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(DIM), gram.shape), atol=1e-13)  # rounding


def test_diagonal_phases_are_independent_and_uniform(agrees):
    phases = np.einsum("njj->nj", transitions("diagonal_unitary"))
    assert np.count_nonzero(transitions("diagonal_unitary")) == phases.size
    for power in (1, 2, 3):
        assert agrees((phases**power).real, np.zeros(DIM))
        assert agrees((phases**power).imag, np.zeros(DIM))
    assert agrees((phases[:, :, None] * np.conj(phases[:, None, :])).real, np.eye(DIM))


def test_haar_matrices_have_the_moments_of_the_orthogonal_group(agrees):
    draws = transitions("haar")
    assert agrees(draws, np.zeros((DIM, DIM)))
    assert agrees(draws**4, np.full((DIM, DIM), 3 / (DIM * (DIM + 2))))
    assert agrees(np.linalg.det(draws), 0.0)  # both components
    # E tr(W^2) = 1 and E tr(W)^2 = 1 on O(d), d >= 2.
    trace = np.trace(draws, axis1=1, axis2=2)
    assert agrees(trace**2, 1.0)
    assert agrees(np.einsum("nij,nji->n", draws, draws), 1.0)


def test_rotation_blocks_rotate_planes_by_uniform_angles(agrees):
    draws = transitions("blocks")
    for i in (0, 2):
        np.testing.assert_array_equal(draws[:, i, i], draws[:, i + 1, i + 1])
        np.testing.assert_array_equal(draws[:, i, i + 1], -draws[:, i + 1, i])
        assert agrees(draws[:, i, i] ** 4, 3 / 8)
        assert agrees(draws[:, i, i] * draws[:, i + 1, i], 0.0)
    assert not np.any(draws[:, :2, 2:])
    assert not np.any(draws[:, 2:, :2])
    assert agrees(draws[:, 0, 0] ** 2 * draws[:, 2, 2] ** 2, 1 / 4)


def test_a_haar_basis_keeps_angles_and_loses_axes(agrees):
    plain, turned = transitions("blocks"), transitions("blocks_haar")
    np.testing.assert_allclose(np.linalg.det(turned), 1.0, rtol=1e-12)
    # tr W^2 = 2 sum cos 2θ has mean 0 for both; its square is 4.
    for draws in (plain, turned):
        squares = np.einsum("nij,nji->n", draws, draws)
        assert agrees(squares, 0.0)
        assert agrees(squares**2, 4.0)
    # tr W = 2 (cos θ_1 + cos θ_2) is spread over the diagonal: E W_11^2 by invariance, E (tr W)^2 / d^2 plus the rest.
    assert agrees(np.sum(turned**2, axis=2), np.ones(DIM))
    assert agrees(turned[:, 0, 3] ** 2 - turned[:, 0, 1] ** 2, 0.0)
    assert not agrees(plain[:, 0, 3] ** 2 - plain[:, 0, 1] ** 2, 0.0)


@pytest.mark.parametrize("name", STARTS)
def test_start_moments_are_those_of_the_samples(name, agrees):
    x = np.abs(starts(name))
    m2, kappa1, kappa2, kappa3 = STARTS[name].moments(DIM)
    assert agrees(x**2, np.full(DIM, m2))
    assert agrees(x**4, np.full(DIM, kappa1))
    assert agrees(x**6, np.full(DIM, kappa2))
    others = np.sum(x**4, axis=1, keepdims=True) - x**4
    assert agrees(x**2 * others, np.full(DIM, kappa3))


def test_start_moments_by_hand():
    assert GaussianStart().moments(3) == pytest.approx((1, 3, 15, 6), rel=1e-15)
    assert ComplexGaussianStart(2.0).moments(3) == pytest.approx((4, 32, 384, 256), rel=1e-15)
    assert SparseStart(2.0).moments(4) == pytest.approx((1, 4, 16, 0), rel=1e-15)
    assert RademacherStart(2.0).moments(3) == pytest.approx((4, 16, 64, 128), rel=1e-15)
    assert ConstantStart().moments(5) == pytest.approx((1, 1, 1, 4), rel=1e-15)


@pytest.mark.parametrize("name", STARTS)
def test_only_the_constant_start_lacks_sign_symmetry(name, agrees):
    x = starts(name)
    odd = (x[:, 0] ** 3 * x[:, 1]).real
    assert agrees(odd, 0.0) == STARTS[name].sign_symmetric == (name != "constant")


@functools.cache
def batch(transition, start, noise_std=0.0):
    task = LinearDynamics(DIM, 2, TRANSITIONS[transition], STARTS[start], noise_std)
    return jax.tree.map(np.asarray, task.sample_batch(jax.random.key(6), 40_000))


def states(prompts):
    return np.concatenate([prompts.inputs, prompts.query[..., None, :], prompts.target[..., None, :]], axis=-2)


@pytest.mark.parametrize(
    ("transition", "start"),
    [("diagonal_unitary", "gaussian"), ("haar", "sparse"), ("blocks_haar", "rademacher"), ("blocks", "complex_gaussian")],
)
def test_noise_free_sequences_follow_their_transition(transition, start):
    prompts = batch(transition, start)
    sequence = states(prompts)
    assert sequence.shape == (40_000, 4, DIM)
    assert np.iscomplexobj(sequence) == (transition == "diagonal_unitary" or start == "complex_gaussian")
    expected = sequence[:, :-1] @ np.swapaxes(prompts.latent, 1, 2)
    np.testing.assert_allclose(sequence[:, 1:], expected, atol=1e-14)
    np.testing.assert_array_equal(prompts.labels, sequence[:, 1:3])


@pytest.mark.parametrize("transition", ["haar", "diagonal_unitary"])
def test_noise_has_the_stated_variance_and_is_in_the_target(transition, agrees):
    prompts = batch(transition, "gaussian", 0.3)
    sequence = states(prompts)
    noise = sequence[:, 1:] - sequence[:, :-1] @ np.swapaxes(prompts.latent, 1, 2)
    assert agrees(np.abs(noise) ** 2, np.full((3, DIM), 0.09))
    assert agrees((noise[:, 0, :, None] * np.conj(noise[:, 1, None, :])).real, np.zeros((DIM, DIM)))
    if transition == "diagonal_unitary":
        assert agrees((noise**2).real, np.zeros((3, DIM)))  # circular


def test_changing_the_noise_changes_neither_transition_nor_start():
    quiet, loud = batch("diagonal_unitary", "gaussian"), batch("diagonal_unitary", "gaussian", 0.3)
    np.testing.assert_array_equal(quiet.latent, loud.latent)
    np.testing.assert_array_equal(quiet.inputs[:, 0], loud.inputs[:, 0])
    assert np.all(quiet.inputs[:, 1] != loud.inputs[:, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearDynamics(0, 3, HaarOrthogonal()), "`dim` must be an integer >= 1; got 0"),
        (lambda: LinearDynamics(2, 0, HaarOrthogonal()), "`context_length` must be an integer >= 1; got 0"),
        (lambda: LinearDynamics(2, 3, HaarOrthogonal(), noise_std=-0.5), "`noise_std` must be a finite number >= 0"),
        (lambda: LinearDynamics(3, 3, RotationBlocks()), "`dim` must be even for `RotationBlocks`.*got 3"),
        (lambda: GaussianStart(0.0), "`scale` must be a finite number > 0.*got 0.0"),
        (lambda: SparseStart(-1.0), "`scale` must be a finite number > 0.*got -1.0"),
    ],
)
def test_bad_dynamics_are_refused_by_name(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()
