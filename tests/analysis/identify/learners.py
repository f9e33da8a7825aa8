"""Learners whose algorithm is known, by name: the predictor, its family and the parameters of it."""

import equinox as eqx
import numpy as np

from icl_lab import estimators, mixers, tasks
from icl_lab.models import Layered, LinearSelfAttention, MixerLayer, constructions
from icl_lab.models.constructions import delta

DIM, LENGTH = 4, 12
TASK = tasks.LinearRegression(DIM, LENGTH, covariance=[2.0, 1.0, 1.0, 0.5], noise_std=0.3)
MATRIX = np.diag([0.9, 0.6, 0.4, 0.2]) + 0.05 * np.arange(16.0).reshape(4, 4)
SIZES, BENDS = np.array([0.5, 0.8]), np.array([0.02, 0.0])
RESIDUAL = LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
PLAIN = LinearSelfAttention()
DELTA = Layered(MixerLayer(mixers.named("deltanet")))
LONGHORN = Layered(MixerLayer(mixers.named("longhorn")))

GD, SMOOTHER, OTHER = "gradient descent", "kernel smoother, ", "preconditioned GD"
# Weights by age that no decay leaves: the newest three examples, and some of the rest against them.
LAGS = np.where(np.arange(LENGTH) >= LENGTH - 3, 0.2, -0.01 * np.arange(LENGTH))
FADING, DECAYED, MOVING = "discounted gradient step", "online SGD with decay", "online SGD with momentum"
STEPS_OF_OWN, WEIGHTED, FADING_RIDGE = "normalised online SGD", "weighted gradient step", "discounted ridge"
RECURRENT = {
    "normalised": (estimators.named("online_sgd", step_size=0.6, normalised=True), STEPS_OF_OWN, {"step_size": 0.6}),
    "delta rule, normalised": (
        mixers.predictor("deltanet", write_strength=0.9, normalised_step=True, scale=1.0),
        STEPS_OF_OWN,
        {"step_size": 0.9},
    ),
    "discounted": (
        estimators.named("discounted_gradient_step", step_size=0.1, decay=0.7),
        FADING,
        {"step_size": 0.1, "decay": 0.7},
    ),
    "retention": (
        mixers.predictor("retention", log_decay=np.log(0.9), scale=0.05),
        FADING,
        {"step_size": 0.05, "decay": 0.9},
    ),
    # Matrices of the state W^T are read as s q^T S.
    "retention of a RetNet": (mixers.predictor("retention"), FADING, {"step_size": DIM**-0.5, "decay": 1 - 2.0**-5}),
    "mamba": (
        mixers.predictor("mamba", step=0.1, rate=2.0, scale=1.0),
        FADING,
        {"step_size": (1 - np.exp(-0.2)) / 2, "decay": np.exp(-0.2)},
    ),
    "linear": (mixers.predictor("linear", scale=0.05), GD, {"step_size": [0.05 * LENGTH]}),
    "decay": (estimators.named("online_sgd", step_size=0.1, decay=0.95), DECAYED, {"step_size": 0.1, "decay": 0.95}),
    "gated delta rule": (
        mixers.predictor("gated_deltanet", write_strength=0.05, log_decay=np.log(0.8), scale=1.0),
        DECAYED,
        {"step_size": 0.05, "decay": 0.8},
    ),
    "momentum": (
        estimators.named("momentum_sgd", step_size=0.03, momentum=0.6),
        MOVING,
        {"step_size": 0.03, "momentum": 0.6},
    ),
    "delta rule with momentum": (
        mixers.predictor("momentum_delta", write_strength=0.05, log_momentum=np.log(0.3), scale=1.0),
        MOVING,
        {"step_size": 0.05, "momentum": 0.3},
    ),
    "discounted ridge": (
        estimators.named("discounted_ridge", penalty=0.5, decay=0.9),
        FADING_RIDGE,
        {"penalty": 0.5, "decay": 0.9},
    ),
    "mesa": (
        mixers.predictor("mesa", write_strength=1.0, log_decay=np.log(0.7), penalty=0.2, scale=1.0),
        FADING_RIDGE,
        {"penalty": 0.2, "decay": 0.7},
    ),
    "mesa without decay": (
        mixers.predictor("mesa", write_strength=0.5, log_decay=0.0, penalty=0.2, scale=1.0),
        "ridge",
        {"penalty": 0.4},
    ),
    "lags": (estimators.named("weighted_gradient_step", example_weights=LAGS), WEIGHTED, {"example_weights": LAGS}),
}
LEARNERS = RECURRENT | {
    "zero": (estimators.named("zero"), "zero", {}),
    "ols": (estimators.named("ols"), "OLS", {}),
    "one step": (estimators.named("gradient_descent", step_size=0.5), GD, {"step_size": [0.5]}),
    "one step uphill": (estimators.named("gradient_descent", step_size=-0.5), GD, {"step_size": [-0.5]}),
    "five steps": (estimators.named("gradient_descent", step_size=0.3, steps=5), GD, {"step_size": [0.3] * 5}),
    "ten steps": (estimators.named("gradient_descent", step_size=0.2, steps=10), GD, {"step_size": [0.2] * 10}),
    "ridge": (estimators.named("ridge", penalty=1.0), "ridge", {"penalty": 1.0}),
    "ridge, small": (estimators.named("ridge", penalty=1e-3), "ridge", {"penalty": 1e-3}),
    "recursive": (estimators.named("recursive_least_squares", penalty=0.5), "ridge", {"penalty": 0.5}),
    "online": (estimators.named("online_sgd", step_size=0.15), "online SGD", {"step_size": 0.15}),
    "delta rule": (mixers.predictor("deltanet", write_strength=0.1, scale=1.0), "online SGD", {"step_size": 0.1}),
    "weights of a delta rule": (
        eqx.Partial(DELTA, delta.online_sgd(DELTA, DIM, 0.1)),
        "online SGD",
        {"step_size": 0.1},
    ),
    "longhorn": (mixers.predictor("longhorn", error_weight=0.1, scale=1.0), "implicit online SGD", {"step_size": 0.1}),
    "weights of longhorn": (
        eqx.Partial(LONGHORN, delta.implicit_online_sgd(LONGHORN, DIM, 20.0)),
        "implicit online SGD",
        {"step_size": 20.0},
    ),
    "gaussian": (estimators.named("kernel_smoother", bandwidth=1.2), SMOOTHER + "gaussian", {"bandwidth": 1.2, "scale": 1.0}),
    "exponential": (
        estimators.named("kernel_smoother", bandwidth=1.5, kernel="exponential", scale=2.0),
        SMOOTHER + "exponential",
        {"bandwidth": 1.5, "scale": 2.0},
    ),
    "opposite": (
        estimators.named("kernel_smoother", bandwidth=1.5, kernel="opposite", scale=-2.0),
        SMOOTHER + "opposite",
        {"bandwidth": 1.5, "scale": -2.0},
    ),
    "two heads": (
        estimators.named("kernel_smoother", bandwidth=1.5, kernel="odd", scale=2.0),
        SMOOTHER + "odd",
        {"bandwidth": 1.5, "scale": 2.0},
    ),
    "gd++": (
        estimators.named("gd_plus_plus", step_sizes=SIZES, curvatures=BENDS),
        "GD++",
        {"step_sizes": SIZES, "curvatures": BENDS},
    ),
    "preconditioned": (
        estimators.named("preconditioned_gradient_descent", preconditioner=MATRIX),
        OTHER,
        {"preconditioner": MATRIX},
    ),
    "weights of a step": (
        eqx.Partial(PLAIN, constructions.gradient_descent(PLAIN, DIM, LENGTH, 0.7)),
        GD,
        {"step_size": [0.7]},
    ),
    "weights of three steps": (
        eqx.Partial(RESIDUAL, constructions.gradient_descent(RESIDUAL, DIM, LENGTH, 0.4, steps=3)),
        GD,
        {"step_size": [0.4] * 3},
    ),
    "weights of a preconditioned step": (
        eqx.Partial(RESIDUAL, constructions.preconditioned_gradient_descent(RESIDUAL, LENGTH, MATRIX)),
        OTHER,
        {"preconditioner": MATRIX},
    ),
    "weights of gd++": (
        eqx.Partial(RESIDUAL, constructions.gd_plus_plus(RESIDUAL, DIM, LENGTH, SIZES, BENDS)),
        "GD++",
        {"step_sizes": SIZES, "curvatures": BENDS},
    ),
}


TWINS = {
    *("delta rule, normalised", "retention of a RetNet", "mamba", "delta rule with momentum", "mesa", "mesa without decay"),
    *("weights of a delta rule", "weights of longhorn", "recursive", "ten steps", "weights of three steps"),
    *("gated delta rule", "delta rule", "one step uphill", "ridge, small", "weights of gd++"),
}
"""Learners that compute what another one does, by other means."""
