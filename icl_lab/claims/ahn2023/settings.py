"""Layers of the sparse form of arXiv 2306.00297, Q_l = -diag(A_l, 0) and P_l = diag(B_l, 1), as trained by claims: what they
answer, their exact losses, where searches start, and the parameters of the problem.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.ahn2023.one_layer import MODEL
from icl_lab.claims.claim import integer, table
from icl_lab.claims.quasi_newton import Ends, minimise
from icl_lab.claims.settings.regression import covariance
from icl_lab.core import prng
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import check_covariance
from icl_lab.core.typing import Array
from icl_lab.models import LSAWeights
from icl_lab.objectives.exact import wishart
from icl_lab.objectives.exact.cubature import CubatureLoss
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.regression.linear import LinearRegression

SIZES = {
    "d": integer(2, 1, "input dimension"),
    "N": integer(4, 1, "context length"),
    "L": integer(2, 1, "layers"),
}
INPUTS = {"Sig": table(None, meaning="input covariance Sigma; null: [[1, .6], [.6, .5]], or 2 down to 1/2 in a random basis")}
SEED = {"seed": integer(0, 0, "of starts, weights and bases")}
SEARCH = {"starts": integer(8, 1, "random starts of BFGS, of which the best counts")} | SEED


def best_stack(d: int, N: int, L: int, corrected: bool) -> tuple[Array, Array, float]:
    """`theory.ahn2023.best_stack`; raises `PrecisionError` where training cannot find it."""
    a, b, minimum = theory.ahn2023.best_stack(d, N, L, corrected)
    check.require_shown(minimum, d)
    return a, b, minimum


def stack(A: Array, B: Array) -> tuple[LSAWeights, ...]:
    """Layers with Q_l = -diag(A_l, 0) and P_l = diag(B_l, 1), A (L, d, d); the last of the B may be left out."""
    dim = A.shape[1]
    moves = jnp.pad(B, ((0, len(A) - len(B)), (0, 1), (0, 1)))
    one = jnp.zeros((dim + 1, dim + 1)).at[dim, dim].set(1.0)
    return tuple(LSAWeights(one + moves[i], jnp.pad(-A[i], ((0, 1), (0, 1)))) for i in range(len(A)))


def free_answer(weights: dict, prompt: Prompt) -> Array:
    """Prediction of layers given by the matrices A and, for GD++, B."""
    A = jnp.asarray(weights["A"])
    return MODEL(stack(A, jnp.asarray(weights["B"]) if "B" in weights else jnp.zeros_like(A)), prompt)


def scaled_answer(metric: Array, weights: dict, prompt: Prompt) -> Array:
    """Prediction of layers with A_l = a_l `metric` and, for GD++, B_l = b_l I."""
    base = jnp.asarray(metric)
    matrices = {"A": jnp.asarray(weights["a"])[:, None, None] * base[None]}
    if "b" in weights:
        matrices["B"] = jnp.asarray(weights["b"])[:, None, None] * jnp.eye(len(base))[None]
    return free_answer(matrices, prompt)


def task_of(d: int, N: int, Sig, seed: int) -> LinearRegression:
    """Inputs of covariance Sigma and tasks of covariance Sigma^{-1}."""
    if Sig is not None:
        matrix = np.array(Sig)
    elif d == 2:
        matrix = np.array([[1.0, 0.6], [0.6, 0.5]])
    else:
        matrix = np.asarray(covariance(None, d, True, seed))
    inverse = np.linalg.inv(matrix)
    return LinearRegression(dim=d, context_length=N, covariance=matrix, task_covariance=(inverse + inverse.T) / 2)


def degree_of(L: int, corrected: bool) -> int:
    return 3**L - 1 if corrected else 2 * L


def shared_answer(L: int, weights: dict, prompt: Prompt) -> Array:
    """Prediction of L layers with A_l = a I and B_l = 0, on prompts of one dimension."""
    return scaled_answer(np.eye(1), {"a": jnp.broadcast_to(jnp.asarray(weights["a"]), (L,))}, prompt)


def validate_covariance(Sig, d: int) -> None:
    if Sig is None:
        return
    if np.shape(Sig) != (d, d):
        raise InvalidValueError(f"`Sig` must be d x d = {d} x {d}; got shape {np.shape(Sig)}. Set `d` too.")
    check_covariance(np.array(Sig), "Sig")


def validate(d, N, L, Sig=None, **_) -> None:
    validate_covariance(Sig, d)
    size = wishart.wishart_size(d, N, degree_of(L, False))
    if size > wishart.LARGEST_RULE:
        raise InvalidValueError(f"d = {d} and L = {L} need {size} prompts, more than {wishart.LARGEST_RULE}; lower them.")


def validate_moving(d, L, Sig, **_) -> None:
    validate_covariance(Sig, d)
    if L > 3:
        raise InvalidValueError(f"`L` must be 2 or 3: no best multiples are known for more layers; got {L}.")


def spectral_loss(d: int, N: int, degree: int, answer) -> CubatureLoss:
    """The half loss of layers that are multiples of the identity in whitened inputs, on prompts of one dimension."""
    return wishart.spectral_cubature(d, N, answer, degree)


def best_multiples(d: int, N: int, L: int, seed: int) -> Ends:
    """The best multiples a and b of GD++."""
    many = 16 if L == 2 else 40
    sizes = np.geomspace(0.5, 0.5 * 4 ** (L - 1), L)
    begin = {
        "a": sizes[None] * np.exp(0.5 * normals(seed, "a", (many, L))),
        "b": np.abs(0.5 + 0.5 * normals(seed, "b", (many, L - 1))),
    }
    return minimise(spectral_loss(d, N, degree_of(L, True), Partial(scaled_answer, np.eye(1))), begin)


def normals(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(jax.random.normal(prng.stream(jax.random.key(seed), name), shape))


def isotropic_starts(d: int, L: int, starts: int, seed: int, corrected: bool) -> dict:
    """Multiples of the identity that differ from layer to layer, and noise in every entry."""
    # Moved inputs are small in later layers, whose steps are then long; without moves any order is as good.
    sizes = np.geomspace(0.5, 0.5 * 4 ** (L - 1), L) if corrected else np.linspace(0.5, 1.5, L)
    # Among local minima, the first start is the one that is nearly isotropic.
    noise = np.append(0.05, np.full(starts - 1, 0.4))[:, None, None, None]
    begin = {"A": sizes[None, :, None, None] * np.eye(d)[None, None] + noise * normals(seed, "A", (starts, L, d, d))}
    return begin | ({"B": 0.3 * np.eye(d) + noise * normals(seed, "B", (starts, L - 1, d, d))} if corrected else {})


def whitened_starts(task: LinearRegression, L: int, starts: int, seed: int, corrected: bool) -> dict:
    """Those starts for inputs of covariance Sigma, as far from Sigma^{-1} as they are from the identity."""
    white = isotropic_starts(task.dim, L, starts, seed, corrected)
    return white | {"A": white["A"] @ np.asarray(task.task_covariance)}


def by_size(matrices: np.ndarray) -> np.ndarray:
    """Layers in ascending order of their traces."""
    return matrices[np.argsort(np.trace(matrices, axis1=1, axis2=2))]
