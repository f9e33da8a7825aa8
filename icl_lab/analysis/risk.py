r"""Risks of predictors by sampling, paired: all predictors see the same prompts.

The risk is :math:`E\lVert \hat y - y_q \rVert^2`, with no factor 1/2. Regression prompts carry the noiseless response
as their target, so it is the *excess* risk; a sequence's target is its actual next value, whose innovation variance is
part of the risk. Because prompts are shared, the difference of two predictors has a standard error of its own, which is
often far smaller than theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.analysis.sampling import Estimate, Predictor, sample_mean
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task


class Risks(eqx.Module):
    """Risks of several predictors on the same prompts.

    Attributes:
      names: P predictors.
      risks: (P,) mean squared errors.
      differences: (P, P) mean of the squared error of the row minus that of the column.
      prompts: number of prompts.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    risks: Estimate
    differences: Estimate
    prompts: int = eqx.field(static=True)

    def __getitem__(self, name: str) -> Estimate:
        """The risk of one predictor."""
        i = self._index(name)
        return jax.tree.map(lambda numbers: float(numbers[i]), self.risks)

    def difference(self, name: str, other: str) -> Estimate:
        """The risk of one predictor minus that of another, with the standard error of the paired difference."""
        i, j = self._index(name), self._index(other)
        return jax.tree.map(lambda numbers: float(numbers[i, j]), self.differences)

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise InvalidValueError(f"No predictor is called {name!r}; choose one of {', '.join(self.names)}.")
        return self.names.index(name)

    def __str__(self) -> str:
        order = np.argsort(self.risks.mean)  # NaN last
        best = self.names[int(order[0])]
        width = max(len(name) for name in self.names)
        lines = [f"{'predictor':{width}}  risk ± standard error      above {best} (paired)"]
        for i in order:
            name = self.names[int(i)]
            lines.append(f"{name:{width}}  {self[name]!s:25}  {self.difference(name, best)}")
        return "\n".join(lines)


def sampled_risks(task: Task, predictors: Mapping[str, Predictor], key: Key, prompts: int = 8192, chunk: int = 1024) -> Risks:
    """Risks of predictors on fresh prompts of a task, all on the same prompts.

    Args:
      task: distribution of the prompts.
      predictors: functions of one prompt that return (k,), by name. `equinox.Partial(model, weights)` and
        `estimators.named(...)` compile once for all weights and parameters.
      key: random key.
      prompts: number of prompts, rounded up to whole chunks.
      chunk: prompts held in memory at once.

    Returns:
      The risks, with standard errors for each and for each difference, as float64 numpy.

    Raises:
      InvalidValueError: no predictors, too few prompts, or a prediction of another shape than the target.

    Examples:
      >>> import jax
      >>> from icl_lab import analysis, estimators, tasks
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> predictors = {"ols": estimators.named("ols"), "zero": estimators.named("zero")}
      >>> risks = analysis.sampled_risks(task, predictors, jax.random.key(0), prompts=4096)
      >>> abs(risks["zero"].mean - 2.0) < 4 * risks["zero"].standard_error
      True
      >>> float(risks["ols"].mean) < 1e-9
      True
    """
    if not predictors:
        raise InvalidValueError("`predictors` must hold at least one predictor; got none.")
    names = tuple(predictors)
    statistic = eqx.Partial(_squared_errors, tuple(predictors.values()))
    (risks, differences), count = sample_mean(statistic, task, key, prompts, chunk)
    return Risks(names=names, risks=risks, differences=differences, prompts=count)


def _squared_errors(predictors: tuple[Predictor, ...], prompt: Prompt) -> tuple[Array, Array]:
    errors = []
    for predictor in predictors:
        prediction = predictor(prompt)
        if prediction.shape != prompt.target.shape:
            raise InvalidValueError(
                f"A predictor must return the shape of the target, {prompt.target.shape}; got {prediction.shape}."
            )
        errors.append(jnp.sum(jnp.abs(prediction - prompt.target) ** 2))
    errors = jnp.stack(errors)
    # Differences are averaged themselves: of two predictors that nearly agree, the difference of means is rounding.
    return errors, errors[:, None] - errors[None, :]


class RiskCurve(eqx.Module):
    """Risks of several predictors against the context length.

    Attributes:
      names: P predictors.
      lengths: L context lengths.
      means: (L, P).
      standard_errors: (L, P).
    """

    names: tuple[str, ...] = eqx.field(static=True)
    lengths: tuple[int, ...] = eqx.field(static=True)
    means: Float[Array, "L P"]
    standard_errors: Float[Array, "L P"]


def risk_against_length(
    task_of_length: Callable[[int], Task],
    lengths: Sequence[int],
    predictors: Mapping[str, Predictor],
    key: Key,
    prompts: int = 8192,
    chunk: int = 1024,
) -> RiskCurve:
    """Risks on prompts of several context lengths.

    Args:
      task_of_length: the distribution of prompts of length N, for example
        `lambda n: LinearRegression(dim=5, context_length=n, noise_std=0.1)`.
      lengths: context lengths; each compiles its own program.
      predictors: functions of one prompt that return (k,), by name, the same at every length.
      key: random key, the same at every length.
      prompts: number of prompts of each length, rounded up to whole chunks.
      chunk: prompts held in memory at once.

    Returns:
      The curve, as float64 numpy.

    Raises:
      InvalidValueError: no predictors, too few prompts, or a prediction of another shape than the target.
    """
    results = [sampled_risks(task_of_length(int(n)), predictors, key, prompts, chunk) for n in lengths]
    return RiskCurve(
        names=tuple(predictors),
        lengths=tuple(int(n) for n in lengths),
        means=np.stack([result.risks.mean for result in results]),
        standard_errors=np.stack([result.risks.standard_error for result in results]),
    )


def lag_excess(predictor: Predictor, task: Task, key: Key, prompts: int) -> Estimate:
    """E(yhat - rho_1 x_n - .. - rho_p x_{n-p+1})^2: the excess over the innovation variance of a predictor of AR(p) series.

    Unlike a difference of risks it has no noise of the target.

    Args:
      predictor: prompt -> (1,).
      task: AR(p) prompts, whose latent is (rho_1 .. rho_p).
      key: random key.
      prompts: at least so many, rounded up to whole chunks.
    """
    estimate, _ = sample_mean(eqx.Partial(_distance_to_lags, predictor), task, key, prompts)
    return estimate


def _distance_to_lags(predictor: Predictor, prompt: Prompt) -> Array:
    return (predictor(prompt)[0] - prompt.query @ prompt.latent[::-1]) ** 2
