"""Claims of Zhang, Singh, Latham, Saxe 2025 (arXiv 2501.16265): training dynamics, merged and separate key and query."""

from __future__ import annotations

import itertools

import jax
import numpy as np

from icl_lab import theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, spectrum
from icl_lab.claims.settings.flow_paths import Integrator, Reparametrised, exact
from icl_lab.claims.settings.regression import SpectralSetting, covariance
from icl_lab.claims.settings.separate_heads import Heads, embed, heads_loss
from icl_lab.core import compiled, prng
from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.models.weights import LSAWeights, SeparateWeights

PAPER = "Zhang, Singh, Latham, Saxe 2025, arXiv 2501.16265"
EXACT_TOLERANCE = 1e-12
SETTLED = 45.0
"""Merged heads are followed for this many times of the slowest mode."""
WAITS = 300.0
"""A small start is followed for this many times 1 / (lambda^2 sigma), the length of the longest plateau."""
CLOSEST = 0.8
"""Largest ratio of neighbouring eigenvalues whose drops are told apart."""


def _normal(seed: int, name: str, *shape: int) -> np.ndarray:
    return np.asarray(jax.random.normal(prng.stream(jax.random.key(seed), name), shape))


class MergedHeads(SpectralSetting):
    """Merged heads from small random entries."""

    H: int = integer(4, 1, "heads")
    sigma: float = number(0.1, positive=True, meaning="standard deviation of the entries at the start")
    inputs_basis = "rotation"


@claim("zhangsaxe2025.merged", MergedHeads, Source(PAPER, "fixed points and conservation law of the merged parametrisation"))
def merged(setting: MergedHeads) -> list[Check]:
    """Several merged heads rest at zero and where sum u_h U_h = Gamma^{-1}, end at the latter, and conserve
    u_a u_b - <U_a, U_b> for any two of them.

    The exact loss's own gradient is followed from small random heads to rest; the end, the conserved numbers, and the
    gradient at zero and at a random point of the optimal manifold that no flow has reached are compared with the closed
    forms. A head that takes no part, or a rest point elsewhere, would make it fail.
    """
    d, N, H, seed, sigma, matrix = setting.d, setting.N, setting.H, setting.seed, setting.sigma, setting.covariance
    values, inner = sigma * _normal(seed, "values", H), sigma * _normal(seed, "inner", H, d, d)
    start = _merged_heads(values, inner)
    integrate = Integrator(exact(setting.task()), start)
    # Small heads grow in parallel, so that the times are those of one head.
    plateau = np.log(1 + 1 / sigma) / np.linalg.norm(theory.timecourse.signal(matrix, setting.task_covariance))
    end = 3 * plateau + SETTLED / theory.stability.late_rates(setting.problem).slowest
    limit = integrate(start, end, rtol=1e-13).at(end)
    ends, inner_ends = limit.w_pv[:, -1, -1], limit.w_kq[:, :d, :d]
    optimum = np.linalg.inv(theory.zhang2023.gamma(matrix, N))
    # A point of the second manifold that no flow has reached: the last head makes up for the others.
    others = _normal(seed, "other values", H), _normal(seed, "other inner", H, d, d).copy()
    others[1][-1] = (optimum - np.einsum("h,hij->ij", others[0][:-1], others[1][:-1])) / others[0][-1]
    at_zero = integrate.gradient(0 * integrate.flat(start))
    at_optimum = integrate.gradient(integrate.flat(_merged_heads(*others)))
    return [
        check.exact("product", np.einsum("h,hij->ij", ends, inner_ends), optimum, EXACT_TOLERANCE),
        check.exact(
            "invariant_abs",
            theory.zhangsaxe2025.merged_invariant(ends, inner_ends),
            theory.zhangsaxe2025.merged_invariant(values, inner),
            1e-11,
        ),
        check.exact("gradient_at_zero_abs", np.linalg.norm(at_zero), 0.0, EXACT_TOLERANCE),
        check.exact("gradient_on_the_optimal_manifold_abs", np.linalg.norm(at_optimum), 0.0, 1e-10),
    ]


def _merged_heads(values: np.ndarray, inner: np.ndarray) -> LSAWeights:
    heads, dim = inner.shape[:2]
    w_pv, w_kq = np.zeros((heads, dim + 1, dim + 1)), np.zeros((heads, dim + 1, dim + 1))
    w_pv[:, -1, -1], w_kq[:, :dim, :dim] = values, inner
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


class SeparateHeads(SpectralSetting):
    """Rank-one heads with separate key and query, and an input spectrum without close eigenvalues."""

    N = 31
    H: int = integer(3, 1, "heads", "of rank one, at least d")
    R: int = integer(2, 1, "rank of a head", "in the check of the dynamics")
    Lam: list[float] | None = spectrum("eigenvalues of the input covariance", ", no two too close; null: powers of 3/5")
    sigma: float = number(1e-3, positive=True, meaning="standard deviation of the entries at the start")
    v0: float = number(0.01, positive=True, meaning="start of the time course of a single head")

    @property
    def spectrum(self) -> np.ndarray:
        """Descending; null: powers of 3/5."""
        return 0.6 ** np.arange(self.d) if self.Lam is None else np.sort(np.asarray(self.Lam))[::-1]

    @property
    def covariance(self) -> Array:
        return covariance(list(self.spectrum), self.d, self.rotate, self.seed)

    def validate(self) -> None:
        super().validate()
        values = self.spectrum
        if self.d > 1 and np.max(values[1:] / values[:-1]) > CLOSEST:
            raise AssumptionError(
                f"an eigenvalue must be at most {CLOSEST:g} of the one before it, or their drops merge; got {values.tolist()}."
            )
        if self.d > self.H:
            raise AssumptionError(
                f"rank-one heads learn one eigenvector each: `H` must be at least d = {self.d}; got {self.H}."
            )
        smallest = theory.zhangsaxe2025.head_sizes(values, self.N).min()
        if self.v0 >= smallest / 2:
            raise AssumptionError(f"`v0` must be below half of the limit {smallest:.6g} of every head; got {self.v0:g}.")


@claim(
    "zhangsaxe2025.separate",
    SeparateHeads,
    Source(PAPER, "dynamics, fixed points, plateaus and time course of the separate parametrisation"),
)
def separate(setting: SeparateHeads) -> list[Check]:
    """Rank-one heads with separate key and query have 2^d fixed points and learn the eigenvectors one after another, resting at
    predicted losses in between.

    Velocity, risks and curvatures are derivatives of the exact loss at random heads and at heads put on every set of
    eigenvectors; the plateaus are read off a flow from small random heads, and the time course from one head started along
    each eigenvector. A wrong order of learning, plateau height or time to half the limit would make it fail.
    """
    d, N, H, R, seed, sigma = setting.d, setting.N, setting.H, setting.R, setting.seed, setting.sigma
    values, matrix, v0 = setting.spectrum, setting.covariance, setting.v0
    basis = np.linalg.eigh(matrix)[1][:, ::-1]
    objective = heads_loss(exact(setting.task()))
    integrate = Integrator(objective, _random_heads(seed, H, 1, d, sigma))
    return [
        *_dynamics(objective, matrix, N, H, R, seed),
        *_fixed_points(integrate, values, basis, N, H),
        *_prefixes(integrate, values, N, _random_heads(seed, H, 1, d, sigma)),
        *_time_course(objective, values, basis, N, v0),
    ]


def _random_heads(seed: int, H: int, R: int, d: int, scale: float) -> Heads:
    shapes = {"values": (H,), "keys": (H, R, d), "queries": (H, R, d)}
    return Heads(**{name: scale * _normal(seed, name, *shape) for name, shape in shapes.items()})


def _dynamics(objective, matrix, N, H, R, seed) -> list[Check]:
    """The velocity of random heads of rank R, and what it leaves unchanged."""
    heads = _random_heads(seed, H, R, d=len(matrix), scale=1.0)
    slope = jax.tree.map(lambda g: -np.asarray(g), compiled.jit(jax.grad(objective))(heads))
    expected = theory.zhangsaxe2025.separate_velocity(heads.values, heads.keys, heads.queries, matrix, N)
    # The time derivative of each conserved quantity.
    keys = np.einsum("hri,hsi->hrs", heads.keys, slope.keys)
    queries = np.einsum("hri,hsi->hrs", heads.queries, slope.queries)
    sizes = 2 * heads.values * slope.values - 2 * np.einsum("hrr->h", keys)
    grams = keys + keys.transpose(0, 2, 1) - queries - queries.transpose(0, 2, 1)
    scale = np.linalg.norm(np.concatenate([np.ravel(part) for part in expected]))
    return [
        *(
            check.exact(f"d{name}_dt", getattr(slope, name), part, EXACT_TOLERANCE)
            for name, part in zip(("values", "keys", "queries"), expected, strict=True)
        ),
        check.exact("change_of_v2_minus_k2_abs", sizes / scale, np.zeros(H), EXACT_TOLERANCE),
        check.exact("change_of_kk_minus_qq_abs", grams / scale, np.zeros((H, R, R)), EXACT_TOLERANCE),
    ]


def _fixed_points(integrate: Integrator, values, basis, N, H) -> list[Check]:
    """Every set of learned eigenvectors (the first d - 6 of many are always in): risk, gradient and curvature."""
    d = len(values)
    sets = np.array(list(itertools.product([0.0, 1.0], repeat=min(d, 6))))
    sets = np.concatenate([np.ones((len(sets), d - sets.shape[1])), sets], axis=1)
    sizes = theory.zhangsaxe2025.head_sizes(values, N)
    points = [_learned(learned, sizes, basis, H) for learned in sets]
    products = [np.diag(basis.T @ point.product() @ basis) for point in points]
    risks, slopes = zip(*(_risk_and_slope(integrate, point) for point in points), strict=True)
    negative, spare_negative, lowered = [], [], []
    for learned, point, risk in zip(sets, points, risks, strict=True):
        negative.append(_lowest(integrate, point) < -1e-9)
        unused = np.flatnonzero(learned == 0)
        if len(unused):
            # The same function, since the head's value and key are zero; and the function with a little of a new eigenvector.
            head, vector = int(unused[0]), basis[:, unused[0]]
            spare_negative.append(_lowest(integrate, _with_head(point, head, 0.0, 0 * vector, vector)) < -1e-9)
            lowered.append(_risk_and_slope(integrate, _with_head(point, head, 0.1, 0.1 * vector, 0.1 * vector))[0] < risk)
    expected = [theory.zhangsaxe2025.subset_product(values, N, learned) for learned in sets]
    risk = [theory.zhangsaxe2025.subset_risk(values, N, learned) for learned in sets]
    return [
        check.exact("fixed_points_W", products, expected, EXACT_TOLERANCE),
        check.exact("risk_at_fixed_points", risks, risk, EXACT_TOLERANCE),
        check.exact("gradient_at_fixed_points_abs", slopes, np.zeros(len(sets)), EXACT_TOLERANCE),
        check.exact(
            "negative_curvature_of_balanced_heads_abs",
            np.array(negative, dtype=float),
            [float(theory.zhangsaxe2025.is_strict_saddle(learned)) for learned in sets],
            0.0,
        ),
        check.holds("all_but_one_have_negative_curvature_with_a_spare_query_abs", all(spare_negative)),
        check.holds("all_but_one_are_left_by_a_new_head_abs", all(lowered)),
        check.exact("hessian_at_zero_abs", np.linalg.norm(integrate.hessian(0 * integrate.flat(points[0]))), 0.0, 0.0),
    ]


def _risk_and_slope(integrate: Integrator, heads: Heads) -> tuple[float, float]:
    loss, gradient = integrate.value_and_gradient(integrate.flat(heads))
    return 2 * loss, float(np.linalg.norm(gradient))


def _lowest(integrate: Integrator, heads: Heads) -> float:
    """The smallest eigenvalue of the Hessian."""
    return float(np.linalg.eigvalsh(integrate.hessian(integrate.flat(heads)))[0])


def _with_head(heads: Heads, index: int, value: float, key: np.ndarray, query: np.ndarray) -> Heads:
    values, keys, queries = heads.values.copy(), heads.keys.copy(), heads.queries.copy()
    values[index], keys[index, 0], queries[index, 0] = value, key, query
    return Heads(values=values, keys=keys, queries=queries)


def _learned(learned: Array, sizes: Array, basis: Array, H: int) -> Heads:
    """Balanced heads, one on each learned eigenvector, the others zero."""
    active = np.zeros(H)
    active[: len(sizes)] = learned * sizes
    vectors = np.zeros((H, 1, len(sizes)))
    vectors[: len(sizes), 0] = (learned * sizes)[:, None] * basis.T
    return Heads(values=active, keys=vectors, queries=vectors)


def _prefixes(integrate: Integrator, values, N, start: Heads) -> list[Check]:
    """The plateaus of a small start."""
    scale = np.sqrt(np.mean(integrate.flat(start) ** 2))
    path = integrate(start, WAITS / (values[-1] ** 2 * scale), method="LSODA", rtol=1e-10)
    states = [path.at(time) for time in path.steps]
    losses, speeds = (np.array(part) for part in zip(*(_risk_and_slope(integrate, state) for state in states), strict=True))
    plateaus = theory.zhangsaxe2025.plateau_risks(values, N)
    edges = (plateaus[1:] + plateaus[:-1]) / 2
    slowest = [plateaus[0]]
    for upper, lower in itertools.pairwise(edges):
        between = np.flatnonzero((losses < upper) & (losses > lower))
        slowest.append(losses[between[np.argmin(speeds[between])]] if len(between) else np.nan)
    end = states[-1]
    invariants = [theory.zhangsaxe2025.separate_invariants(s.values, s.keys, s.queries) for s in (start, end)]
    sizes = np.sort(np.abs(end.values))[-len(values) :]
    return [
        check.exact("plateau_risks", [losses[0], *slowest[1:], losses[-1]], plateaus, 1e-6),
        check.exact("final_values", sizes, np.sort(theory.zhangsaxe2025.head_sizes(values, N)), 0.01),
        check.exact("v2_minus_k2_abs", invariants[1][0], invariants[0][0], 1e-6),
        check.exact("kk_minus_qq_abs", invariants[1][1], invariants[0][1], 1e-6),
    ]


def _time_course(objective: Reparametrised, values, basis, N, v0) -> list[Check]:
    """One balanced head alone on each eigenvector in turn: the time to half its limit."""
    d = len(values)

    # Heads along the eigenvectors form an invariant subspace; its own coordinates keep rounding from leaving it.
    def aligned(sizes: tuple[Array, Array, Array]) -> SeparateWeights:
        v, key, query = sizes
        return embed(Heads(values=v, keys=(key[:, None] * basis.T)[:, None], queries=(query[:, None] * basis.T)[:, None]))

    integrate = Integrator(Reparametrised(objective.base, aligned), (np.zeros(d),) * 3)
    limits, gains = theory.zhangsaxe2025.head_sizes(values, N), theory.zhangsaxe2025.gains(values, N)
    measured, expected = [], []
    for mode in range(d):
        half = float(limits[mode]) / 2
        time = theory.zhangsaxe2025.head_time(v0, half, float(values[mode]), float(gains[mode]))
        start = (v0 * np.eye(d)[mode],) * 3
        path = integrate(start, 1.5 * time, [lambda heads, mode=mode, half=half: heads[0][mode] - half], stop=True)
        measured.append(path.crossings[0][0])
        expected.append(time)
    return [check.exact("time_to_half", measured, expected, 1e-8)]
