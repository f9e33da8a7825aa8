"""Whether the draws of a law of covariates have the moments that it declares.

An exact loss believes what a law says of itself, so a wrong kurtosis would silently give a wrong loss. Each declared moment is
compared with the mean of draws, in standard errors: no smaller ones than the declared moments imply, where they imply any.
Where not, these are honest only if many draws carry the mean: a moment that few carry, or that events too rare to be seen may
carry, is judged from below alone, by the mean of draws cut off at a large one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float

from icl_lab.core import precision
from icl_lab.core.errors import InvalidValueError, NonFiniteError, UnsupportedProblemError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Key
from icl_lab.tasks.blocks import inputs, is_foreign
from icl_lab.tasks.distributions.covariates import CovariateDistribution
from icl_lab.tasks.prompt import check_count

LARGEST_Z = 6.0
"""Standard errors by which a sampled moment may be off; of a thousand normal numbers one is further off once in 10^6 times."""
CARRIERS = 40
"""Draws that have to carry the variance of a mean. With fewer, means of powers of Student's law of infinite variance were up to
89 of their own standard errors off; with as many, none of some thousand means was off by more than 5.8."""
CUT = 64
"""Draws that are cut off where a moment is judged from below."""
PAIRS = 200
"""Pairs of coordinates whose products are compared."""
QUICK = 20_000
"""Prompts of `check_once`: at most a second, most of it to compile."""
QUICK_INPUTS = 50_000
"""Inputs of `check_once`, where the other inputs of a prompt are drawn with the two that are looked at."""
FEWEST = 1000
"""Prompts below which moments say nothing."""

_checked: set[object] = set()


@dataclasses.dataclass(frozen=True)
class MomentCheck:
    """One declared moment beside the mean of the draws.

    Attributes:
      name: as "E x_1^4".
      declared, sampled: the two values.
      standard_error: of `sampled`, from the draws themselves.
      z: by how many standard errors the draws contradict the declaration; 0 where they cannot.
      judged: whether from both sides. If not, z is of a declared value that is too small, and 0 for products that have a sign.
    """

    name: str
    declared: float
    sampled: float
    standard_error: float
    z: float
    judged: bool


@dataclasses.dataclass(frozen=True)
class DistributionReport:
    """What `check_distribution` found.

    Attributes:
      law: the name of its class.
      samples: pairs of inputs that were drawn.
      checks: one for each moment.
      remarks: what was not judged, and why.
    """

    law: str
    samples: int
    checks: tuple[MomentCheck, ...]
    remarks: tuple[str, ...]

    @property
    def largest_z(self) -> float:
        """The largest |z| of all moments."""
        return float(max(abs(check.z) for check in self.checks))


def check_distribution(law: CovariateDistribution, key: Key | None = None, samples: int = 100_000) -> DistributionReport:
    """Compare the moments that a law declares with draws.

    Compared are means, covariances, E x_i^2 x_j^2 and generic fourth moments; of independent coordinates also E x_i^3 = 0 and
    `moments`; of a law that denies a shared covariance also that two inputs of a prompt and their lengths are uncorrelated.

    Args:
      law: any law of covariates.
      key: for the draws; seed 0 if omitted.
      samples: prompts of two inputs each.

    Returns:
      All comparisons, and remarks on what the draws could not judge.

    Raises:
      InvalidValueError: a declared moment and the draws contradict each other, or an array has the wrong shape.
      NonFiniteError: a draw is not finite.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> law = tasks.IndependentCoordinates(2, jax.random.normal, kurtosis=3.0)
      >>> tasks.check_distribution(law).largest_z < 6
      True
      >>> tasks.check_distribution(tasks.IndependentCoordinates(2, jax.random.normal, kurtosis=4.0))
      Traceback (most recent call last):
      icl_lab.core.errors.InvalidValueError: `IndependentCoordinates` declares E x_1^4 = 4, and 100000 draws ...
    """
    check_count(samples, "samples", FEWEST, "Moments of few draws say nothing.")
    return _report(law, jax.random.key(0) if key is None else key, samples, 2)


def _report(law: CovariateDistribution, key: Key, samples: int, count: int) -> DistributionReport:
    """`check_distribution` by the first two of `count` inputs of each prompt."""
    with precision.float64():
        _check_shapes(law, key)
        draws = _pairs_of_inputs(law, key, samples, count)
    if not np.all(np.isfinite(draws)):
        raise NonFiniteError(f"`{type(law).__name__}.sample` gave {np.sum(~np.isfinite(draws))} NaN or infinite number(s).")
    checks, remarks = [], []
    for moment in _moments(law, draws, remarks):
        check = _compare(moment)
        if abs(check.z) > LARGEST_Z:
            raise InvalidValueError(
                f"`{type(law).__name__}` declares {check.name} = {check.declared:.6g}, and {samples} draws give "
                f"{check.sampled:.6g} with a standard error of {check.standard_error:.2g} (z = {check.z:.3g}): its `sample` "
                "and its moments contradict each other."
            )
        if not check.judged:
            remarks.append(f"{check.name}: too few draws carry it, so that it is not judged from above.")
        checks.append(check)
    return DistributionReport(type(law).__name__, samples, tuple(checks), tuple(remarks))


def check_once(law: CovariateDistribution, count: int) -> None:
    """`check_distribution` with few draws, the first time that a law of a user is met with these numbers.

    The laws of the package are not checked, nor is one that is traced.

    Args:
      law: of any kind.
      count: inputs of the prompts that are drawn next, so that the program that draws them serves both.

    Raises:
      InvalidValueError: as `check_distribution` does.
    """
    leaves, structure = jax.tree.flatten(law)
    if not is_foreign(law) or any(is_traced(leaf) for leaf in leaves):
        return
    numbers = tuple((np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in leaves)
    if (structure, numbers) not in _checked:
        samples = min(QUICK, max(FEWEST, QUICK_INPUTS // count)) if law.shared_covariance else QUICK
        _report(law, jax.random.key(0), samples, count)
        _checked.add((structure, numbers))


def _pairs_of_inputs(law: CovariateDistribution, key: Key, samples: int, count: int) -> Float[np.ndarray, "n 2 d"]:
    """Two inputs of so many prompts of `count` inputs; those of a law that denies to share anything may be any two."""
    source, blocks = inputs(law, key, count if law.shared_covariance else 2), []
    while sum(map(len, blocks)) < samples:
        blocks.append(next(source)[:, :2])
    return np.concatenate(blocks)[:samples]


def _check_shapes(law: CovariateDistribution, key: Key) -> None:
    d, name = law.dim, type(law).__name__
    drawn = jax.eval_shape(lambda key: law.sample(key, 3), key)
    if drawn.shape != (3, d):
        raise InvalidValueError(f"`{name}.sample(key, 3)` must have shape (3, {d}), one input a row; got {drawn.shape}.")
    if law.independent and np.shape(law.moments(2)) != (d,):
        raise InvalidValueError(f"`{name}.moments(2)` must have shape ({d},); got {np.shape(law.moments(2))}.")
    if np.shape(law.covariance) != (d, d):
        raise InvalidValueError(f"`{name}.covariance` must have shape ({d}, {d}); got {np.shape(law.covariance)}.")


@dataclasses.dataclass(frozen=True, eq=False)
class _Moment:
    """A declared mean.

    Attributes:
      draws: (n,), of which it is the mean.
      signed: whether they may be negative.
      deviation: their standard deviation, if declared moments imply it.
      rare: whether events too rare to be seen may carry the mean.
    """

    name: str
    declared: float
    draws: Float[np.ndarray, "n"]
    signed: bool
    deviation: float | None = None
    rare: bool = False


def _moments(law: CovariateDistribution, draws: Float[np.ndarray, "n 2 d"], remarks: list[str]) -> Iterator[_Moment]:
    """Everything that is compared; what is not declared goes to the remarks."""
    x, other = draws[:, 0], draws[:, 1]
    d, covariance, squares = law.dim, np.asarray(law.covariance), _squares(law, remarks)
    pairs = [(i, (i + shift) % d) for shift in range(d // 2 + 1) for i in range(d)][:PAIRS]
    for i in range(min(d, PAIRS)):
        yield _Moment(f"E x_{i + 1}", 0.0, x[:, i], True, float(np.sqrt(covariance[i, i])))
    for i, j in pairs:
        variance = None if squares is None else max(squares[i, j] - covariance[i, j] ** 2, 0.0)
        deviation = None if variance is None else float(np.sqrt(variance))
        yield _Moment(f"E x_{i + 1} x_{j + 1}", float(covariance[i, j]), x[:, i] * x[:, j], i != j, deviation)
    if not law.shared_covariance:
        yield _Moment("E x.x' of two inputs", 0.0, np.sum(x * other, axis=1), True, float(np.linalg.norm(covariance)))
        lengths, total = np.sum(x**2, axis=1) * np.sum(other**2, axis=1), float(np.trace(covariance))
        deviation = None if squares is None else float(np.sqrt(max(np.sum(squares) ** 2 - total**4, 0.0)))
        yield _Moment("E |x|^2 |x'|^2 of two inputs", total**2, lengths, False, deviation)
        squared, expected = np.sum(x * other, axis=1) ** 2, float(np.sum(covariance**2))
        yield _Moment("E (x.x')^2 of two inputs", expected, squared, False, rare=_rare(law, len(x), joint=True))
    if law.independent:
        yield from _of_single_coordinates(law, x, remarks)
    if squares is not None:
        rare = _rare(law, len(x), joint=True)
        for i, j in pairs:
            name, product = f"E x_{i + 1}^2 x_{j + 1}^2", x[:, i] ** 2 * x[:, j] ** 2
            apart = law.independent and i != j
            deviation = float(np.sqrt(max(squares[i, i] * squares[j, j] - squares[i, j] ** 2, 0.0))) if apart else None
            yield _Moment(name, float(squares[i, j]), product, False, deviation, rare)
        waves = np.cos(np.arange(1.0, d * d + 1).reshape(d, d))  # a matrix that is not symmetric, the same in every run
        fourth = np.asarray(law.fourth_moment(waves))
        for u, v in ((waves[0], waves[-1][::-1]), (np.eye(d)[0], np.eye(d)[-1])):
            product = (x @ u) * np.einsum("ni,ij,nj->n", x, waves, x) * (x @ v)
            yield _Moment("u^T E[x x^T A x x^T] v", float(u @ fourth @ v), product, True, rare=rare)


def _of_single_coordinates(law: CovariateDistribution, x: Float[np.ndarray, "n d"], remarks: list[str]) -> Iterator[_Moment]:
    """E x_i^3 = 0, E x_i^4 and E x_i^6."""
    rare = _rare(law, len(x), joint=False)
    for order in (3, 4, 6):
        try:
            declared = np.zeros(law.dim) if order == 3 else np.asarray(law.moments(order))
        except UnsupportedProblemError as unknown:
            remarks.append(f"E x_i^{order}: {unknown}")
            continue
        for i in range(min(law.dim, PAIRS)):
            yield _Moment(f"E x_{i + 1}^{order}", float(declared[i]), x[:, i] ** order, order == 3, rare=rare)


def _squares(law: CovariateDistribution, remarks: list[str]) -> Float[np.ndarray, "d d"] | None:
    """E x_i^2 x_j^2, or None with a remark if they are infinite or not known."""
    try:
        columns = [np.diagonal(np.asarray(law.fourth_moment(np.diag(row)))) for row in np.eye(law.dim)]
    except UnsupportedProblemError as unknown:
        remarks.append(f"E x x^T A x x^T: {unknown}")
        return None
    return np.stack(columns, axis=1)


def _rare(law: CovariateDistribution, count: int, joint: bool) -> bool:
    """Whether, by the law's own moments, those of order 4 and more may be carried by events that hardly occur in `count` draws.

    Under the law weighted by x^4, x^2 is about s = m_6 / m_4; that it is as large has at most the probability m_4 / s^2.
    Weighted by x^2 it is about m_4 / m_2, with a probability of at most m_2^2 / m_4; `joint` is for products, where that has to
    happen to two coordinates at once.
    """
    if not law.independent:
        return False
    try:
        second, fourth = np.asarray(law.moments(2)), np.asarray(law.moments(4))
        if joint and np.any(count * (second**2 / fourth) ** 2 < CARRIERS):
            return True
        sixth = np.asarray(law.moments(6))
    except UnsupportedProblemError:
        return False
    return bool(np.any(count * fourth**3 / sixth**2 < CARRIERS))


def _compare(moment: _Moment) -> MomentCheck:
    name, declared, values = moment.name, moment.declared, moment.draws
    mean, error, carriers = _mean(values)
    known = moment.deviation is not None
    if moment.deviation is not None:
        error = max(error, moment.deviation / np.sqrt(len(values)))
    if abs(mean - declared) <= 1e-9 * max(abs(declared), float(np.mean(np.abs(values)))):
        return MomentCheck(name, declared, mean, error, 0.0, True)
    if known or (carriers >= CARRIERS and not moment.rare):
        return MomentCheck(name, declared, mean, error, (mean - declared) / error, True)
    if moment.signed:
        return MomentCheck(name, declared, mean, error, 0.0, False)
    lower, lower_error, _ = _mean(np.minimum(values, np.partition(values, -CUT)[-CUT]))
    return MomentCheck(name, declared, mean, error, max((lower - declared) / lower_error, 0.0), False)


def _mean(values: Float[np.ndarray, "n"]) -> tuple[float, float, float]:
    """The mean, its standard error, and how many draws carry that."""
    mean = float(np.mean(values))
    squares = (values - mean) ** 2
    # Draws that are all alike do not exclude an event of a probability of one over their number.
    error = max(float(np.sqrt(np.sum(squares))), float(np.mean(np.abs(values)))) / len(values)
    scale = float(np.max(squares))
    if scale <= (1e-12 * abs(mean)) ** 2:
        return mean, error, np.inf
    return mean, error, float(np.sum(squares / scale) ** 2 / np.sum((squares / scale) ** 2))
