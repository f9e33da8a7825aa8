"""Claims of Zhang, Frei, Bartlett 2023 about the error of the trained layer on prompts of other lengths and labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import estimators, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import choice, integer, number
from icl_lab.claims.simulation import mean_with_error, simulate
from icl_lab.claims.zhang2023.measurements import RISK_TOLERANCE, converged, prompts, risk_on, trained
from icl_lab.claims.zhang2023.settings import (
    INFINITE,
    INFINITE_TOLERANCE,
    INFINITE_TRAINING,
    MODEL,
    PAPER,
    FixedTaskSetting,
    TrainedSetting,
    TransferSetting,
)
from icl_lab.core import prng
from icl_lab.core.errors import AssumptionError
from icl_lab.tasks import Gaussian, Link, Monomial, ReLU, Sign
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.prompt import Prompt

SLOPE_TOLERANCE = 0.01
# Least squares needs so many examples more than dimensions for squared errors of a tame variance.
SPARE = 6
LINKS: dict[str, Link] = {
    "linear": Monomial(1),
    "relu": ReLU(),
    "sign": Sign(),
    "cubic": Monomial(3),
    "square": Monomial(2),
    "constant": Monomial(0),
}


class LabelSetting(FixedTaskSetting):
    """Labels of many kinds, each with and without noise."""

    label: str = choice("all", ("all", *LINKS), "labels as a function of w.x")
    s2: float = number(0.5, 0.0, "variance of the label noise", "; every label is also run without noise")
    samples = 800_000


@claim("zhang2023.thm4.2", LabelSetting, Source(PAPER, "Theorem 4.2"))
def error_on_any_labels(setting: LabelSetting) -> list[Check]:
    """On prompts of any distribution of labels the trained layer's error is that of the best linear predictor, plus
    tr(Cov(xy) Gamma^{-2} Lam)/M, plus a term of order 1/N^2.

    The layer is trained by gradient flow on the exact loss of linear prompts, from the theorem's start at half its largest
    scale; its forward pass then answers simulated prompts of every label, and for linear labels the risk is also exact. A
    second moment E[xy (xy)^T] in place of the covariance, or a term of order 1/N, would make it fail.
    """
    N, M, matrix, direction = setting.N, setting.M, setting.covariance, setting.vector
    links = LINKS if setting.label == "all" else {setting.label: LINKS[setting.label]}
    noises = sorted({0.0, setting.s2})
    flow = trained(setting.task())
    inputs_distribution = Gaussian(matrix)

    def squared_errors(key):
        inputs = inputs_distribution.sample(prng.stream(key, "inputs"), M + 1)
        noise = normals(prng.stream(key, "noise"), 1, M + 1)[0]

        def squared_error(link, variance):
            labels = (jax.vmap(link)(inputs @ direction) + np.sqrt(variance) * noise)[:, None]
            prompt = Prompt(inputs=inputs[:-1], labels=labels[:-1], query=inputs[-1], target=labels[-1])
            return jnp.sum((MODEL(flow.limit, prompt) - prompt.target) ** 2)

        return jnp.stack([squared_error(link, variance) for link in links.values() for variance in noises])

    errors = simulate(squared_errors, setting.stream("prompts"), setting.samples)
    checks = [converged(flow)]
    for column, (name, variance) in zip(errors.T, [(name, v) for name in links for v in noises], strict=True):
        distribution = theory.transfer.single_index_distribution(name, direction, matrix, variance)
        expected = theory.transfer.error(matrix, N, M, distribution)
        words = name if variance == 0 else f"{name}_noisy"
        if name == "linear":
            # The risk is against a noiseless query label.
            risk = risk_on(flow.limit, prompts(matrix, M, setting.one_task, variance)) + variance
            signal = float(direction @ matrix @ direction)
            checks.append(check.exact(f"error_{words}_exact", risk, expected, RISK_TOLERANCE, terms=signal))
        mean, error = mean_with_error(column)
        checks.append(check.sampled(f"error_{words}", mean, expected, error))
    return checks


@claim("zhang2023.thm4.2-linear", TransferSetting, Source(PAPER, "Theorem 4.2, averaged over the task vector", "extended"))
def risk_at_other_lengths(setting: TransferSetting) -> list[Check]:
    """On linear tasks w ~ N(0, I) the error after M examples is (tr(Lam) t2 + t3)/M +
    (t3 + 2 tr(Lam) t2 + tr(Lam)^2 t1)/N^2, t_k = tr(Gamma^{-2} Lam^k).

    The layer is trained by gradient flow on the exact loss, from the theorem's start at half its largest scale; its exact risk
    is taken at five test lengths, one of which stands for infinity. A Gamma with the test length in place of the training
    length would agree at M = N only.
    """
    N, M, matrix = setting.N, setting.M, setting.covariance
    flow, trace = trained(setting.task()), np.trace(matrix)

    def risk(name: str, length: int, limit: int | float, tolerance: float) -> Check:
        expected = theory.zhang2023.risk(matrix, N, limit)
        return check.exact(f"risk_at_{name}", risk_on(flow.limit, prompts(matrix, length)), expected, tolerance, terms=trace)

    return [
        converged(flow),
        *(risk(name, m, m, RISK_TOLERANCE) for name, m in {"M": M, "1": 1, "N": N, "100": 100}.items()),
        risk("infinity", INFINITE, np.inf, INFINITE_TOLERANCE),
    ]


class AccuracySetting(TrainedSetting):
    """An accuracy that is asked of the risk."""

    eps: float = number(0.004, positive=True, meaning="accuracy")


@claim("zhang2023.cor4.3", AccuracySetting, Source(PAPER, "Corollary 4.3"))
def sample_size(setting: AccuracySetting) -> list[Check]:
    """(d + 1) tr(Lam) / eps test examples bring the risk below eps + (1 + 2d + d^2 kappa) tr(Lam) / N^2, of which the second
    term stays.

    Layers are trained by gradient flow on the exact loss at N and at 4N, from the theorem's start at half its largest scale;
    their exact risks are taken at four test lengths, among them the one asked for and one that stands for infinity. A bound
    without the second term would be broken.
    """
    d, N, matrix = setting.d, setting.N, setting.covariance
    enough = theory.transfer.sample_size(matrix, setting.eps)
    lengths = np.array([1, N, enough, INFINITE])
    checks = []
    for n, words in ((N, ""), (4 * N, "_at_4N")):
        flow = trained(prompts(matrix, n))
        eta = theory.transfer.residual_bound(matrix, n)
        risks = [risk_on(flow.limit, prompts(matrix, int(m))) for m in lengths]
        expected = [theory.zhang2023.risk(matrix, n, int(m)) for m in lengths]
        floor, terms = theory.zhang2023.risk(matrix, n, np.inf), np.trace(matrix)
        checks += [
            converged(flow, f"flow_converged{words}_abs"),
            check.exact(f"risks{words}", risks, expected, RISK_TOLERANCE),
            check.at_most(f"risks_against_bound{words}", risks, (d + 1) * np.trace(matrix) / lengths + eta, terms=terms),
            check.at_most(f"risk_at_sample_size{words}", risks[2], setting.eps + eta, terms=terms),
            check.exact(f"residual{words}", risks[3], floor, INFINITE_TOLERANCE, terms=terms),
        ]
    return checks


class RatesSetting(TransferSetting):
    """Beside the prompts of any covariance, isotropic ones with noise of training and of the test."""

    s2: float = number(0.5, 0.0, "variance of the label noise", "of training, isotropic case")
    s2_test: float = number(0.25, 0.0, "variance of the label noise of the test", ", isotropic case")


@claim("zhang2023.asymptotics", RatesSetting, Source(PAPER, "discussion of Theorem 4.2"))
def rates(setting: RatesSetting) -> list[Check]:
    """After training on infinite contexts the risk is (d+1) tr(Lam)/M for every Lam; after infinite test contexts it falls like
    1/N^2.

    Five layers are trained by gradient flow on the exact loss, at lengths up to one that stands for infinity and with noise,
    each from the theorem's start at half its largest scale; exact risks and slopes of their logarithms are compared. A floor
    that falls like 1/N, or d tr(Lam)/M in place of (d+1) tr(Lam)/M, would make it fail.
    """
    d, N, M, matrix, eye = setting.d, setting.N, setting.M, setting.covariance, np.eye(setting.d)
    trace, isotropic = np.trace(matrix), theory.transfer.isotropic_risk
    infinite, early, late = (trained(prompts(matrix, n)) for n in (INFINITE_TRAINING, 10**4, 10**6))
    clean, noisy = (trained(prompts(eye, N, noise_variance=variance)) for variance in (0.0, setting.s2))
    biases = [risk_on(flow.limit, prompts(matrix, INFINITE)) for flow in (early, late)]
    # What is left of the risk after infinite contexts is subtracted, so that the slope in M is that of the variance alone.
    variances = [risk_on(early.limit, prompts(matrix, m)) - biases[0] for m in (10, 1000)]
    after_infinite = risk_on(infinite.limit, prompts(matrix, M))
    bias = risk_on(clean.limit, prompts(eye, INFINITE))
    risk = risk_on(noisy.limit, prompts(eye, M, noise_variance=setting.s2_test))
    noisy_risk = isotropic(d, N, M, setting.s2, setting.s2_test)
    return [
        *(converged(flow, f"flow_converged_{i}_abs") for i, flow in enumerate((infinite, early, late, clean, noisy))),
        check.exact("risk_after_infinite_training", after_infinite, (d + 1) * trace / M, INFINITE_TOLERANCE, terms=trace),
        check.exact("isotropic_bias", bias, isotropic(d, N, np.inf), INFINITE_TOLERANCE, terms=d),
        check.exact("isotropic_noisy_risk", risk, noisy_risk, RISK_TOLERANCE, terms=d),
        check.exact("slope_of_bias_in_N_abs", np.log10(biases[1] / biases[0]) / 2, -2.0, SLOPE_TOLERANCE),
        check.exact("slope_of_variance_in_M_abs", np.log10(variances[1] / variances[0]) / 2, -1.0, SLOPE_TOLERANCE),
    ]


class LeastSquaresSetting(TransferSetting):
    """Least squares on the same prompts, without noise and with it."""

    s2: float = number(4.0, positive=True, meaning="variance of the label noise", detail="of the noisy test")
    samples: int = integer(40_000, 1_000, "number of draws", "of prompts")

    def validate(self) -> None:
        super().validate()
        if self.d > self.M:
            raise AssumptionError(f"least squares recovers a noiseless task from M >= d = {self.d} examples; got M = {self.M}.")


@claim("zhang2023.vs-ols", LeastSquaresSetting, Source(PAPER, "comparison after Theorem 4.2", "extended"))
def against_least_squares(setting: LeastSquaresSetting) -> list[Check]:
    """Without noise least squares is exact from M = d on, and the layer keeps a floor; with noise it can win at short contexts,
    and loses at long ones.

    The layer is trained by gradient flow on the exact loss, from the theorem's start at half its largest scale; it and least
    squares then answer the same simulated prompts, noiseless ones at M, noisy ones at d + 6 and ten times as many. A floor that
    vanishes, or s2 d / (M - d) in place of s2 d / (M - d - 1) for least squares, would make it fail.
    """
    d, N, M, matrix = setting.d, setting.N, setting.M, setting.covariance
    key = setting.key
    flow, trace = trained(setting.task()), np.trace(matrix)

    def errors(length: int, noise_variance: float) -> tuple[np.ndarray, np.ndarray]:
        task = prompts(matrix, length, noise_variance=noise_variance)

        def pair(one):
            prompt = task.sample(one)
            answers = jnp.stack([MODEL(flow.limit, prompt), estimators.ols(prompt)])
            return jnp.sum((answers - prompt.target[None]) ** 2, axis=1)

        layer, ols = simulate(pair, prng.stream(key, f"{length} {noise_variance}"), setting.samples).T
        return layer, ols

    layer, ols = errors(M, 0.0)
    mean, error = mean_with_error(layer)
    floor = theory.zhang2023.risk(matrix, N, np.inf)
    risk, risk_in_the_limit = (risk_on(flow.limit, prompts(matrix, length)) for length in (M, INFINITE))
    checks = [
        converged(flow),
        check.exact("noiseless_ols_abs", np.mean(ols), 0.0, RISK_TOLERANCE * trace),
        check.sampled("noiseless_layer", mean, theory.zhang2023.risk(matrix, N, M), error),
        check.at_least("noiseless_layer_against_floor", risk, floor, terms=trace),
        check.exact("floor", risk_in_the_limit, floor, INFINITE_TOLERANCE, terms=trace),
    ]
    inverse = np.linalg.inv(theory.zhang2023.gamma(matrix, N))
    for words, length in (("short", d + SPARE), ("long", 10 * (d + SPARE))):
        mean, error = mean_with_error(np.subtract(*errors(length, setting.s2)))
        of_layer = theory.lsa.risk(theory.Problem.of(prompts(matrix, length, noise_variance=setting.s2)), inverse)
        expected = of_layer - theory.bayes.ols_risk(d, length, setting.s2)
        checks.append(check.sampled(f"noisy_layer_minus_ols_{words}_abs", mean, expected, error))
    return checks
