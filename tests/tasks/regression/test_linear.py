import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError
from icl_lab.tasks import Gaussian, LinearRegression, Sphere, Uniform, from_spectrum, random_rotation

COVARIANCE = from_spectrum([2.0, 1.0, 0.5], random_rotation(3, seed=5))
TASK_COVARIANCE = from_spectrum([1.5, 0.5, 0.0], random_rotation(3, seed=6))  # singular, does not commute
NOISE = 0.5


@pytest.fixture(scope="module")
def task():
    return LinearRegression(3, 2, covariance=COVARIANCE, task_covariance=TASK_COVARIANCE, noise_std=NOISE)


@pytest.fixture(scope="module")
def batch(task):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, task.sample_batch(jax.random.key(4), 40_000))


def test_inputs_query_and_task_vector_have_their_covariances(batch, agrees):
    outer = lambda v: v[:, :, None] * v[:, None, :]  # noqa: E731
    assert agrees(outer(batch.inputs[:, 1]), COVARIANCE)
    assert agrees(outer(batch.query), COVARIANCE)
    assert agrees(outer(batch.latent), TASK_COVARIANCE)
    assert not agrees(outer(batch.latent), COVARIANCE)


def test_query_inputs_and_task_vector_are_independent(batch, agrees):
    for left, right in [(batch.inputs[:, 0], batch.query), (batch.inputs[:, 0], batch.latent)]:
        assert agrees(left[:, :, None] * right[:, None, :], np.zeros((3, 3)))


def test_labels_are_noisy_responses_and_the_target_is_noiseless(task, batch, agrees):
    clean = np.einsum("nij,nj->ni", batch.inputs, batch.latent)
    noise = batch.labels[:, :, 0] - clean
    assert agrees(noise[:, :, None] * noise[:, None, :], NOISE**2 * np.eye(2))
    assert agrees(noise * clean, np.zeros(2))
    # 3 products of numbers of order 10
    np.testing.assert_allclose(batch.target[:, 0], np.sum(batch.query * batch.latent, axis=1), atol=1e-13)
    assert agrees(batch.target[:, 0] ** 2, task.signal_variance)
    assert agrees(batch.labels[:, 1, 0] ** 2, task.label_variance)


def test_variances_are_the_traces_worked_by_hand():
    task = LinearRegression(2, 1, covariance=[2.0, 1.0], task_covariance=[[1.0, 0.5], [0.5, 3.0]], noise_std=2.0)
    assert task.signal_variance == pytest.approx(5.0, rel=1e-15)
    assert task.label_variance == pytest.approx(9.0, rel=1e-15)


def test_examples_are_exchangeable_with_each_other_and_with_the_query(batch, agrees):
    inputs = np.concatenate([batch.inputs, batch.query[:, None]], axis=1)
    responses = np.einsum("nij,nj->ni", inputs, batch.latent)
    # E x_i y_i y_j x_j^T: one value for all pairs i != j.
    moment = np.einsum("nia,ni,nj,njb->nijab", inputs, responses, responses, inputs)
    first = moment[:, 0, 1]
    for i, j in [(1, 0), (1, 2), (2, 0)]:
        assert agrees(moment[:, i, j] - first, np.zeros((3, 3)))
    assert not agrees(moment[:, 0, 0] - first, np.zeros((3, 3)))


def test_the_ways_to_give_a_covariance_agree(key):
    by_spectrum = LinearRegression(3, 2, covariance=[2.0, 1.0, 0.5], task_covariance=[1.0, 2.0, 0.0])
    by_matrix = LinearRegression(3, 2, covariance=np.diag([2.0, 1.0, 0.5]), task_covariance=np.diag([1.0, 2.0, 0.0]))
    by_distribution = LinearRegression(3, 2, covariates=Gaussian([2.0, 1.0, 0.5]), task_covariance=[1.0, 2.0, 0.0])
    standard = LinearRegression(3, 2)
    np.testing.assert_array_equal(by_spectrum.covariance, np.diag([2.0, 1.0, 0.5]))
    np.testing.assert_array_equal(standard.covariance, np.eye(3))
    np.testing.assert_array_equal(standard.task_covariance, np.eye(3))
    for other in (by_matrix, by_distribution):
        jax.tree.map(np.testing.assert_array_equal, other.sample(key), by_spectrum.sample(key))


def test_changing_the_noise_changes_only_the_labels(key):
    quiet, loud = (LinearRegression(3, 2, COVARIANCE, noise_std=std).sample(key) for std in (0.0, 2.0))
    for name in ("inputs", "query", "target", "latent"):
        np.testing.assert_array_equal(getattr(quiet, name), getattr(loud, name))
    assert np.min(np.abs(np.asarray(quiet.labels - loud.labels))) > 0


def test_changing_the_covariance_keeps_the_task_vector(key):
    first, second = (LinearRegression(3, 2, covariance).sample(key) for covariance in (None, COVARIANCE))
    np.testing.assert_array_equal(first.latent, second.latent)


def test_no_noise_is_drawn_when_it_is_zero_and_the_root_is_skipped_when_it_is_the_identity(key):
    program = lambda task: str(jax.make_jaxpr(lambda k: task.sample(k))(key))  # noqa: E731
    assert program(LinearRegression(3, 2)).count("erf_inv") == 2
    assert program(LinearRegression(3, 2, noise_std=0.1)).count("erf_inv") == 3
    products = [program(LinearRegression(3, 2, covariance)).count("dot_general") for covariance in (None, COVARIANCE)]
    assert products == [1, 2]


def test_a_task_may_be_an_argument_of_a_jitted_function(key):
    task = LinearRegression(3, 2, COVARIANCE, TASK_COVARIANCE, noise_std=0.0)
    traced = jax.jit(lambda t, k: t.sample(k))(task, key)
    # Fused differently: rounding of sums of 3 products.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), traced, task.sample(key))


def test_a_covariance_may_be_traced(key):
    scales = np.array([0.5, 2.0])
    inputs = jax.vmap(lambda s: LinearRegression(3, 2, s * COVARIANCE).sample(key).inputs)(scales)
    expected = np.stack([LinearRegression(3, 2, s * COVARIANCE).sample(key).inputs for s in scales])
    np.testing.assert_allclose(inputs, expected, atol=1e-13)  # two eigendecompositions of a matrix of condition 4


def test_any_covariate_distribution_serves(key):
    task = LinearRegression(3, 2, covariates=Sphere(3, radius=2.0), noise_std=0.1)
    np.testing.assert_allclose(task.covariance, 4 / 3 * np.eye(3), rtol=1e-15)
    np.testing.assert_allclose(np.linalg.norm(task.sample(key).inputs, axis=1), 2.0, rtol=1e-14)
    assert task.signal_variance == pytest.approx(4.0, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"context_length": 0}, InvalidValueError, "`context_length` must be an integer >= 1; got 0"),
        ({"context_length": True}, InvalidValueError, "`context_length` must be an integer >= 1; got True"),
        ({"dim": 0}, InvalidValueError, "`dim` must be an integer >= 1; got 0"),
        ({"noise_std": -0.1}, InvalidValueError, "`noise_std` must be a finite number >= 0; got -0.1"),
        ({"noise_std": np.nan}, InvalidValueError, "`noise_std` must be a finite number >= 0; got nan"),
        ({"covariance": [1.0, 2.0]}, InvalidValueError, r"`covariance` must be a \(3,\) spectrum.*got shape \(2,\)"),
        ({"covariance": np.diag([1.0, 1.0, -1.0])}, NotPositiveDefiniteError, "smallest eigenvalue is -1"),
        ({"covariance": np.triu(np.ones((3, 3)))}, NotPositiveDefiniteError, "`covariance` must be symmetric"),
        ({"task_covariance": np.eye(2)}, InvalidValueError, r"`task_covariance` must be a \(3,\) spectrum"),
        ({"task_covariance": [1.0, 1.0, -0.5]}, NotPositiveDefiniteError, "`task_covariance` must be positive semidef"),
        ({"covariates": Uniform(2)}, InvalidValueError, "`covariates` must have dimension dim = 3; got a distribution of dim"),
        ({"covariates": Uniform(3), "covariance": np.eye(3)}, InvalidValueError, "`covariance` or `covariates`, not"),
    ],
)
def test_bad_tasks_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        LinearRegression(**{"dim": 3, "context_length": 2, **arguments})
