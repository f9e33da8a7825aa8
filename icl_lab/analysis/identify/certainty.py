r"""How well a fit knows the parameters of a family that describes a model and does not equal it.

The fit solves :math:`\sum_m c_m\, J_m^\top r_m = 0` over prompts with residuals r, weights c and derivatives J of the answers
by the parameters. A parameter is as uncertain as that sum is over other prompts: with :math:`H = \sum_m c_m J_m^\top J_m` its
covariance is :math:`H^{-1} \big(\sum_m c_m^2\, J_m^\top r_m r_m^\top J_m\big) H^{-1}`, whatever the residuals are like.

Everything is relative. A matrix, or a list of steps or weights, is multiplied by one number, and that is what is uncertain.
"""

from __future__ import annotations

import numpy as np

from icl_lab import estimators
from icl_lab.analysis.identify.candidate import Candidate
from icl_lab.analysis.identify.observations import Observed, answers_of

# Relative, and downwards: a decay has nothing above 1.
_STEP = 1e-6


def standard_errors(candidate: Candidate, observed: Observed) -> dict[str, float]:
    """The relative standard error of each parameter of a family that was fitted to answers.

    Args:
      candidate: the family with its parameters.
      observed: the prompts and the answers that they were fitted to.

    Returns:
      By name, for parameters that are real numbers or arrays of them; infinity for one that has no effect on the answers.
    """
    names = [name for name, value in candidate.parameters.items() if np.asarray(value).dtype.kind == "f"]
    at = answers_of(candidate.predictor, observed.prompts)

    def derivative(name: str) -> np.ndarray:
        """Of the answers by the logarithm of a parameter."""
        moved = candidate.parameters | {name: np.asarray(candidate.parameters[name] * (1 - _STEP))}
        return (at - answers_of(estimators.named(candidate.estimator, **moved), observed.prompts)) / _STEP

    slopes = {name: derivative(name) for name in names}
    used = [name for name in names if np.any(slopes[name])]
    if not used:
        return dict.fromkeys(names, np.inf)
    jacobian = np.stack([slopes[name] for name in used])
    scores = np.real(np.sum(jacobian.conj() * (at - observed.answers), axis=2)) * observed.weights
    inverse = np.linalg.pinv(np.real(np.einsum("pmk,qmk,m->pq", jacobian.conj(), jacobian, observed.weights)), hermitian=True)
    deviations = np.sqrt(np.diag(inverse @ (scores @ scores.T) @ inverse))
    return dict.fromkeys(names, np.inf) | {name: float(error) for name, error in zip(used, deviations, strict=True)}


def said(errors: dict[str, float]) -> str:
    """For the reader: "step_size is known to 0.3%, decay to 0.1%", or nothing where there are no parameters."""
    parts = [f"{name}{' is known' if i == 0 else ''} to {100 * error:.1g}%" for i, (name, error) in enumerate(errors.items())]
    return ", ".join(parts)
