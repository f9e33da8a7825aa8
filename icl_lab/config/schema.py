"""The types of every configuration key; the values are in the YAML groups.

One dataclass a choice (`task=sphere` has other keys than `task=autoregressive`), registered with Hydra under
`schema/<group>` and named in the first line of each YAML file, so that an unknown key or a value of the wrong type is
refused while the configuration is composed. Ranges (N >= 1, a positive definite covariance, ...) are checked where they
are known, by the classes of `tasks`, `models`, `objectives` and `training`. `kind` picks the builder in `config.build`
and is set by the YAML file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Optional

from icl_lab.core.errors import InvalidValueError


class Precision(Enum):
    """Floating-point precision of a run."""

    float64 = "float64"
    float32 = "float32"


# OmegaConf reads these annotations at run time; it knows Optional[X], and X | None only from later versions on.


@dataclass
class Task:
    """Keys of every task."""

    kind: str
    context_length: int


@dataclass
class NoisyTask(Task):
    """Keys of every task with noise on labels or states."""

    noise_std: float


@dataclass
class Regression(NoisyTask):
    """Keys of every regression task with vector inputs."""

    dim: int


@dataclass
class GaussianInputs(Regression):
    """Gaussian inputs; `config.covariance` says what a covariance may be, `rotate` seeds a random rotation of it."""

    covariance: Any
    rotate: Optional[int]  # noqa: UP045


@dataclass
class GaussianRegression(GaussianInputs):
    """Linear responses to Gaussian inputs."""

    task_covariance: Any


@dataclass
class AffineRegression(GaussianRegression):
    """Linear responses to Gaussian inputs, and an intercept."""

    intercept_variance: float


@dataclass
class DriftingRegression(Regression):
    """A task vector that drifts; `persistence` is a number or a list of one number a coordinate."""

    persistence: Any


@dataclass
class UniformRegression(Regression):
    """Inputs uniform on [-half_width, half_width]^d."""

    half_width: float
    task_covariance: Any


@dataclass
class StudentRegression(Regression):
    """Independent coordinates of Student's law."""

    degrees_of_freedom: float
    scale: float
    task_covariance: Any


@dataclass
class TwoSizesRegression(Regression):
    """Independent coordinates of any variance and kurtosis."""

    kurtosis: float
    variance: float
    task_covariance: Any


@dataclass
class SineRegression(NoisyTask):
    """Sine waves, an amplitude and a phase a prompt."""

    half_width: float
    distribution: str


@dataclass
class SphereRegression(Regression):
    """Inputs uniform on a sphere."""

    radius: float
    task_covariance: Any


@dataclass
class FiniteSpectrumRegression(NoisyTask):
    """A covariance drawn for every prompt: eigenvalue i is values[i][j] with probability probabilities[i][j]."""

    values: list[list[float]]
    probabilities: list[list[float]]
    task_covariance: Any


@dataclass
class GaussianMixtureRegression(NoisyTask):
    """A covariance drawn for every prompt: covariances[j] with probability probabilities[j]."""

    covariances: list[list[list[float]]]
    probabilities: list[float]
    task_covariance: Any


@dataclass
class ExponentialDiagonalRegression(Regression):
    """A diagonal covariance with independent exponential entries of mean `scale`, drawn for every prompt."""

    scale: float
    task_covariance: Any


@dataclass
class NonlinearRegression(GaussianInputs):
    """Responses that are a nonlinear function of Gaussian inputs."""

    response: str
    degree: int
    width: int


@dataclass
class Autoregressive(NoisyTask):
    """AR(p) series with the same coefficients in every prompt."""

    coefficients: list[float]


@dataclass
class RandomAutoregressive(NoisyTask):
    """AR(p) with coefficients drawn for every prompt."""

    order: int
    bound: float


@dataclass
class LinearDynamics(NoisyTask):
    """x_{t+1} = W x_t with W drawn for every prompt."""

    dim: int
    transition: str
    start: str
    start_scale: float


@dataclass
class MarkovChain(Task):
    """A chain on `states` states with random transitions."""

    states: int
    concentration: float


@dataclass
class AssociativeRecall(Task):
    """Keys with values, one of which is asked for."""

    dim: int
    value_dim: int
    orthonormal: bool


@dataclass
class Learner:
    """Keys of every model: tokens, layers, loops and readout."""

    kind: str
    embedding: str
    query_in_sum: bool
    layers: int
    loops: int
    readout_sign: float
    layer_norm: bool
    clip: Optional[float]  # noqa: UP045


@dataclass
class Attention(Learner):
    """Keys of every attention model: its static description, its size and its parametrisation."""

    causal: bool
    heads: Optional[int]  # noqa: UP045
    parametrisation: str


@dataclass
class LinearAttention(Attention):
    """Linear self-attention."""

    normaliser: str


@dataclass
class SoftmaxAttention(Attention):
    """Softmax self-attention."""

    inverse_temperature: float


@dataclass
class MixerModel(Learner):
    """Layers round a token mixer; the keys of `parameters` and `gates` are those of the mixer that is named."""

    mixer: str
    parameters: dict[str, Any]
    gates: dict[str, float]
    data_dependent: bool
    heads: int
    key_width: Optional[int]  # noqa: UP045
    value_width: Optional[int]  # noqa: UP045


@dataclass
class PopulationObjective:
    """The exact loss where it is known, else the one on sampled moments of `prompts` prompts."""

    kind: str
    prompts: int


@dataclass
class StreamedObjective:
    """`batch` fresh prompts at every step."""

    kind: str
    batch: int


@dataclass
class Trainer:
    """Keys of every trainer: where training starts."""

    kind: str
    init: str
    init_scale: float


@dataclass
class GradientFlow(Trainer):
    """Continuous-time training to the limit."""

    weight_tolerance: float
    solver: str
    max_steps: int


@dataclass
class Descent(Trainer):
    """Discrete training by an optax optimiser, named as in optax."""

    optimiser: str
    learning_rate: float
    steps: int


@dataclass
class Analysis:
    """How the comparison with the estimators is made."""

    prompts: int
    seed: int
    context_lengths: Any
    ridge_penalty: Optional[float]  # noqa: UP045
    figures: Optional[bool]  # noqa: UP045


@dataclass
class Run:
    """The primary configuration."""

    seed: int
    run_root: str
    experiment: str
    precision: Precision
    task: Any
    model: Any
    objective: Any
    trainer: Any
    analysis: Any


GROUPS = ("task", "model", "objective", "trainer", "analysis")
"""The configuration groups that describe a run."""

SCHEMAS: dict[str, type] = {
    "schema/run": Run,
    "schema/task/gaussian_regression": GaussianRegression,
    "schema/task/affine_regression": AffineRegression,
    "schema/task/drifting_regression": DriftingRegression,
    "schema/task/uniform_regression": UniformRegression,
    "schema/task/student_regression": StudentRegression,
    "schema/task/two_sizes_regression": TwoSizesRegression,
    "schema/task/sphere_regression": SphereRegression,
    "schema/task/sine_regression": SineRegression,
    "schema/task/finite_spectrum_regression": FiniteSpectrumRegression,
    "schema/task/gaussian_mixture_regression": GaussianMixtureRegression,
    "schema/task/exponential_diagonal_regression": ExponentialDiagonalRegression,
    "schema/task/nonlinear_regression": NonlinearRegression,
    "schema/task/autoregressive": Autoregressive,
    "schema/task/random_autoregressive": RandomAutoregressive,
    "schema/task/linear_dynamics": LinearDynamics,
    "schema/task/markov_chain": MarkovChain,
    "schema/task/associative_recall": AssociativeRecall,
    "schema/model/linear_attention": LinearAttention,
    "schema/model/softmax_attention": SoftmaxAttention,
    "schema/model/mixer": MixerModel,
    "schema/objective/population": PopulationObjective,
    "schema/objective/streamed": StreamedObjective,
    "schema/trainer/gradient_flow": GradientFlow,
    "schema/trainer/descent": Descent,
    "schema/analysis/analysis": Analysis,
}


KINDS: dict[str, dict[str, type]] = {
    "task": {
        "linear_regression": GaussianRegression,
        "affine": AffineRegression,
        "drift": DriftingRegression,
        "uniform": UniformRegression,
        "student": StudentRegression,
        "two_sizes": TwoSizesRegression,
        "sine": SineRegression,
        "sphere": SphereRegression,
        "random_diagonal": FiniteSpectrumRegression,
        "gaussian_mixture": GaussianMixtureRegression,
        "exponential_diagonal": ExponentialDiagonalRegression,
        "rotated_spectrum": FiniteSpectrumRegression,
        "nonlinear": NonlinearRegression,
        "autoregressive": Autoregressive,
        "random_autoregressive": RandomAutoregressive,
        "linear_dynamics": LinearDynamics,
        "markov": MarkovChain,
        "recall": AssociativeRecall,
    },
    "model": {"linear_attention": LinearAttention, "softmax_attention": SoftmaxAttention, "mixer": MixerModel},
    "objective": {"population": PopulationObjective, "sampled": PopulationObjective, "streamed": StreamedObjective},
    "trainer": {"gradient_flow": GradientFlow, "descent": Descent},
}
"""The keys that each `kind` has."""


def check_experiment(name: str) -> None:
    """Raise `InvalidValueError` unless a series of runs can have this name."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidValueError(
            f"`experiment` must be a name of letters, digits, '_', '-' and '.', since it names a folder; got {name!r}."
        )


def register() -> None:
    """Put every schema into Hydra's ConfigStore under the name the YAML files use."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for path, schema in SCHEMAS.items():
        group, name = path.rsplit("/", 1)
        store.store(group=group, name=name, node=schema, provider="icl_lab")
