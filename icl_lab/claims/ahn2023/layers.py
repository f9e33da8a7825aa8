"""Claims of Ahn et al. 2023 (arXiv 2306.00297) about several layers: critical points, their values, and what GD++ gains."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from icl_lab import analysis, theory
from icl_lab.claims import check
from icl_lab.claims.ahn2023 import settings
from icl_lab.claims.ahn2023.settings import PAPER, Correlated, CorrelatedSearch, Layers, Search
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.quasi_newton import Ends, minimise
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, table
from icl_lab.claims.settings.regression import covariance
from icl_lab.core import compiled
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import psd_root
from icl_lab.core.typing import Array
from icl_lab.objectives.curvature import loss_and_norm
from icl_lab.objectives.exact import wishart

EXACT_TOLERANCE = 1e-12
SLOPE_TOLERANCE = 1e-10
RISK_TOLERANCE = 1e-9
WEIGHT_TOLERANCE = 1e-5
STATIONARY_TOLERANCE = 1e-8


def _risk(name: str, setting: Layers, measured, expected) -> Check:
    return check.exact(name, measured, expected, RISK_TOLERANCE, terms=setting.d)


def _none_below(setting: Layers, ends: Ends, minimum: float) -> Check:
    bound = np.full(len(ends.losses), minimum)
    return check.at_least("no_start_ends_below", 2 * ends.losses, bound, RISK_TOLERANCE, terms=setting.d)


def _diagonal(multiples: Array, d: int) -> Array:
    return multiples[:, None, None] * np.eye(d)


@claim("ahn2023.thm2", Search, Source(PAPER, "Theorem 2; the multiples are the lab's"))
def best_isotropic_layers(setting: Search) -> list[Check]:
    """For isotropic inputs the best layers with B = 0 are diagonal; they are multiples of the identity, also without
    the constraint that A is symmetric, in any order.

    BFGS on the exact loss over all entries of A from random starts around unequal multiples of the identity, none at the
    optimum; the lowest end counts. Equal multiples, or any start that ends below, would make it fail.
    """
    ends = minimise(setting.loss(), setting.random_starts())
    steps, _, minimum = setting.best()
    return [
        _risk("risk", setting, 2 * np.min(ends.losses), minimum),
        check.exact("A", settings.by_size(ends.lowest["A"]), _diagonal(steps, setting.d), WEIGHT_TOLERANCE),
        _none_below(setting, ends, minimum),
    ]


def _slope_checks(setting: Layers, moving: bool) -> list[Check]:
    """Derivatives of the risk by whole matrices at random multiples a of Sigma^{-1} and b of the identity."""
    d, N, L = setting.d, setting.N, setting.L
    matrix, inverse = setting.covariance, setting.task_covariance
    a = 1 + 0.3 * setting.normals("a", L)
    b = 0.3 + 0.1 * setting.normals("b", L) if moving else np.zeros(L)
    point = {"A": a[:, None, None] * inverse} | ({"B": _diagonal(b, d)} if moving else {})
    loss, slope = compiled.jit(jax.value_and_grad(setting.loss(moving)))(jax.tree.map(jnp.asarray, point))
    by_a, by_b = theory.ahn2023.stack_slopes(a, b, d, N)
    measured = 2 * np.asarray(slope["A"])
    checks = [
        check.exact("risk_on_the_set", 2 * float(loss), theory.ahn2023.stack_risk(a, b, d, N), SLOPE_TOLERANCE, terms=d),
        check.exact("slope_in_A", measured, by_a[:, None, None] / d * matrix, SLOPE_TOLERANCE),
    ]
    if moving:
        scale = float(np.max(np.abs(by_a)))
        moved = 2 * np.asarray(slope["B"])
        checks += [
            check.exact("slope_in_B_abs", moved[:-1], _diagonal(by_b[:-1] / d, d), SLOPE_TOLERANCE * scale),
            check.exact("slope_in_last_B_abs", moved[-1], np.zeros((d, d)), EXACT_TOLERANCE * scale),
        ]
    else:
        # The share of the slope that leaves the set, whose directions are multiples of Sigma^{-1}.
        along = measured[0] - np.sum(measured[0] * inverse) / np.sum(inverse**2) * inverse
        leaves = np.linalg.norm(along) / np.linalg.norm(measured[0])
        sine = np.sqrt(max(0.0, 1 - (d / (np.linalg.norm(matrix) * np.linalg.norm(inverse))) ** 2))
        checks.append(check.exact("share_that_leaves_the_set_abs", leaves, sine, 1e-7))
    return checks


@claim("ahn2023.thm3", CorrelatedSearch, Source(PAPER, "Theorem 3"))
def best_preconditioned_layers(setting: CorrelatedSearch) -> list[Check]:
    """For w ~ N(0, Sigma^{-1}) the best A_l = a_l Sigma^{-1} are critical over all A, the slopes on this set being
    multiples of Sigma; the value is the isotropic one. No start of BFGS over all A ends lower.

    BFGS on the exact loss, over the multiples a and over all entries of A, from random starts; derivatives of the exact loss at
    the best a that it found and at random a, without training. Equal a, slopes along Sigma^{-1} or of another size, or a start
    that ends below would make it fail.
    """
    matrix, inverse = setting.covariance, setting.task_covariance
    steps, _, minimum = setting.best()
    objective = setting.loss()
    scaled = minimise(setting.loss(answer=Partial(settings.scaled_answer, inverse)), setting.multiples(2))
    _, slope = loss_and_norm(objective, {"A": jnp.asarray(scaled.lowest["a"][:, None, None] * inverse)})
    ends = minimise(objective, setting.random_starts())
    root = np.asarray(psd_root(matrix))
    found = settings.by_size(root @ ends.lowest["A"] @ root)
    return [
        check.exact("a", np.sort(scaled.lowest["a"]), steps, WEIGHT_TOLERANCE),
        _risk("risk", setting, 2 * np.min(scaled.losses), minimum),
        check.exact("slope_at_the_best_a_abs", 2 * float(slope), 0.0, STATIONARY_TOLERANCE * float(np.trace(matrix))),
        *_slope_checks(setting, moving=False),
        _risk("risk_of_all_A", setting, 2 * np.min(ends.losses), minimum),
        check.exact("whitened_A", found, _diagonal(steps, setting.d), WEIGHT_TOLERANCE),
        _none_below(setting, ends, minimum),
    ]


class Order(Correlated):
    """Layers enough to be put in another order."""

    L = 3


@claim("ahn2023.lemma4", Order, Source(PAPER, "Lemma 4"))
def order_is_free(setting: Order) -> list[Check]:
    """The risk of layers A_l = a_l Sigma^{-1}, B_l = 0 does not depend on their order.

    The exact risk at random multiples, not trained, in up to 24 orders, beside the closed form in one of them. A risk in which
    a layer's place matters, as it does for moving inputs, or half the risk, would make it fail.
    """
    a = 1 + 0.5 * setting.normals("a", setting.L)
    orders = np.array(list(itertools.islice(itertools.permutations(a), 24)))
    objective = setting.loss(answer=Partial(settings.scaled_answer, setting.task_covariance))
    risks = 2 * np.asarray(compiled.jit(lambda orders: jax.lax.map(lambda a: objective({"a": a}), orders))(orders))
    expected = theory.ahn2023.stack_risk(a, np.zeros(setting.L), setting.d, setting.N)
    return [check.exact("risks", risks, np.full(len(orders), expected), EXACT_TOLERANCE, terms=setting.d)]


class MovingLayers(CorrelatedSearch):
    """Two or three layers that also move the inputs."""

    L: int = integer(2, 2, "number of layers", ", 2 or 3")
    starts = 5
    all_entries = False

    def validate(self) -> None:
        super().validate()
        if self.L > 3:
            raise InvalidValueError(f"`L` must be 2 or 3: no best multiples are known for more layers; got {self.L}.")


@claim("ahn2023.thm4", MovingLayers, Source(PAPER, "Theorem 4"), extra_settings=({"d": 5, "N": 20, "L": 3},))
def best_moving_layers(setting: MovingLayers) -> list[Check]:
    """With P_l = diag(B_l, 1) the best A_l = a_l Sigma^{-1}, B_l = b_l I are critical: GD++ with eta_l = a_l and
    gamma_l = a_l b_l / n; the last B has no effect.

    BFGS on the exact loss over the multiples, and where prompts are few also over all entries, from random starts of unequal
    size; derivatives at random multiples without training. Curvatures without the factor n, or a slope by the last B, would
    make it fail.
    """
    a, b, minimum = setting.best(moving=True)
    scaled = setting.moving_multiples()
    checks = [
        _risk("risk", setting, 2 * np.min(scaled.losses), minimum),
        check.exact("a", scaled.lowest["a"], a, WEIGHT_TOLERANCE),
        check.exact("b", scaled.lowest["b"], b[:-1], WEIGHT_TOLERANCE),
    ]
    if not setting.moving_search:
        return checks
    ends = minimise(setting.loss(moving=True), setting.random_starts(moving=True))
    root = np.asarray(psd_root(setting.covariance))
    return [
        *checks,
        *_slope_checks(setting, moving=True),
        _risk("risk_of_all_A_and_B", setting, 2 * np.min(ends.losses), minimum),
        check.exact("whitened_A", root @ ends.lowest["A"] @ root, _diagonal(a, setting.d), WEIGHT_TOLERANCE),
        check.exact("B", ends.lowest["B"], _diagonal(b[:-1], setting.d), WEIGHT_TOLERANCE),
        _none_below(setting, ends, minimum),
    ]


PUBLISHED_DIAGONALS, PUBLISHED_TOLERANCE = (0.425, 0.69, 1.705), 0.02
"""Middles of the ranges .42-.43, .69, 1.69-1.72 of the trained diagonals, of which the paper's figure gives two digits."""
PAPER_SPECTRUM = (1.0, 1.0, 0.25, 0.0625, 1.0)


class PublishedLayers(CorrelatedSearch):
    """The size of the paper's experiment."""

    d = 5
    N = 20
    L = 3
    Sig: list[list[float]] | None = table(
        None, meaning="input covariance", detail=", Sigma; null: eigenvalues 1, 1, 1/4, 1/16, 1, repeated, in a random basis"
    )
    starts = 4
    all_entries = False

    @property
    def covariance(self) -> Array:
        published = covariance(list(np.resize(PAPER_SPECTRUM, self.d)), self.d, True, self.seed)
        return published if self.Sig is None else super().covariance


@claim("ahn2023.thm3.L3", PublishedLayers, Source(PAPER, "Theorem 3 and its experiment"))
def published_layers(setting: PublishedLayers) -> list[Check]:
    """The best multiples of three layers at the paper's d = 5, n = 20 are the diagonals of
    Sigma^{1/2} A_l Sigma^{1/2} that its experiments end in.

    BFGS on the exact loss over the multiples of Sigma^{-1} only, from random starts around unequal ones; at the paper's size
    the diagonals are also compared with the published ones. Equal multiples would make it fail.
    """
    d, inverse = setting.d, setting.task_covariance
    objective = wishart.bidiagonal_cubature(setting.task(), Partial(settings.scaled_answer, inverse), 2 * setting.L)
    ends = minimise(objective, setting.multiples(setting.starts))
    steps, _, minimum = setting.best()
    root = np.asarray(psd_root(setting.covariance))
    layers = settings.by_size(root @ (ends.lowest["a"][:, None, None] * inverse) @ root)
    diagonals = np.diagonal(layers, axis1=1, axis2=2)
    checks = [
        _risk("risk", setting, 2 * np.min(ends.losses), minimum),
        check.exact("diagonals", diagonals, np.repeat(steps[:, None], d, axis=1), WEIGHT_TOLERANCE),
    ]
    if (d, setting.N, setting.L) == (5, 20, 3):
        checks.append(check.exact("published", np.mean(diagonals, axis=1), PUBLISHED_DIAGONALS, PUBLISHED_TOLERANCE))
    return checks


class DepthCurves(Layers):
    """Risks of one to L layers."""

    d = 5
    N: int = integer(20, 2, "context length")
    L: int = integer(4, 1, "number of layers", ", at most; GD++ up to 3 of them")
    all_entries = False


@claim("ahn2023.fig7", DepthCurves, Source(PAPER, "Figure 7; values derived for the lab", "extended"))
def depth_curves(setting: DepthCurves) -> list[Check]:
    """Preconditioned gradient descent with one shared step is far above the best layers, which are GD++, from two
    layers on; baselines with n - 1 examples are higher still. The layers are optimised up to three; no
    transformer is trained.

    BFGS on the exact loss over one shared step, from 1/2, and over the multiples a and b of moving layers, from random starts,
    beside minima of polynomials in the theory. The best step of another depth, or of n for n - 1 examples, would make it fail.
    """
    d, N, depths = setting.d, setting.N, range(1, setting.L + 1)
    setting.best()  # the loss of every curve but the last shows
    checks = []
    for name, length in (("shared_step", N), ("shared_step_of_n_minus_1", N - 1)):
        losses = [settings.spectral_loss(d, length, 2 * depth, Partial(settings.shared_answer, depth)) for depth in depths]
        measured = [2 * minimise(loss, {"a": np.full(1, 0.5)}).losses[0] for loss in losses]
        rules = [theory.ahn2023.stack_rule(d, length, depth, corrected=False) for depth in depths]
        expected = [2 * theory.descent_steps.best_shared_step(*one).loss for one in zip(rules, depths, strict=True)]
        checks += [
            _risk(name, setting, measured, expected),
            _risk(f"{name}_one_layer", setting, measured[0], d * (d + 1) / (length + d + 1)),
        ]
    moving = [dataclasses.replace(setting, L=depth) for depth in depths if 2 <= depth <= 3]
    if moving:
        measured = [2 * np.min(one.moving_multiples().losses) for one in moving]
        minima = [one.best(moving=True)[2] for one in moving]
        checks.append(_risk("linear_transformer", setting, measured, minima))
    return checks


class Distances(CorrelatedSearch):
    """A search whose ends are compared with the identity, which needs two dimensions."""

    d: int = integer(2, 2, "dimension", "of the inputs")
    starts = 3


@claim("ahn2023.dist", Distances, Source(PAPER, "Section 5, measure of the experiments"))
def distance_from_the_identity(setting: Distances) -> list[Check]:
    """Dist(M, I) = min_c |M - c I| / |M|, with c = tr M / d, of Sigma^{1/2} A_l Sigma^{1/2} and of B_l is 0 at
    the optimum.

    The library's measure at random matrices beside the closed form, and at the lowest end of BFGS on the exact loss over all
    entries from random starts. A distance to the identity itself, or layers that are no multiples of it, would make it fail.
    """
    moving = setting.L > 1 and setting.moving_search
    root = np.asarray(psd_root(setting.covariance))
    drawn = setting.normals("matrices", 5, setting.d, setting.d)
    setting.best(moving)  # there is one to be found
    lowest = minimise(setting.loss(moving), setting.random_starts(moving)).lowest
    trained = {"A": root @ lowest["A"] @ root} | ({"B": lowest["B"]} if moving else {})
    measured = {name: analysis.distance_to_identity(matrices) for name, matrices in trained.items()}
    expected = [theory.ahn2023.distance_to_identity(one) for one in drawn]
    return [
        check.exact("random_matrices", analysis.distance_to_identity(drawn), expected, EXACT_TOLERANCE),
        *(check.exact(f"trained_{name}_abs", one, np.zeros(len(one)), WEIGHT_TOLERANCE) for name, one in measured.items()),
    ]
