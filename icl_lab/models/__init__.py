"""Learners, their layers and weights, starts of training, and the weights that implement an estimator by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icl_lab.core import lazy
from icl_lab.models import constructions as constructions
from icl_lab.models import initializers as initializers
from icl_lab.models.attention import SelfAttention as SelfAttention
from icl_lab.models.gates import GateMap as GateMap
from icl_lab.models.layer import Layer as Layer
from icl_lab.models.learner import Layered as Layered
from icl_lab.models.learner import Learner as Learner
from icl_lab.models.linear_attention import LinearLayer as LinearLayer
from icl_lab.models.linear_attention import LinearSelfAttention as LinearSelfAttention
from icl_lab.models.mapped_layer import MappedLayer as MappedLayer
from icl_lab.models.mapped_layer import MappedWeights as MappedWeights
from icl_lab.models.mixer_layer import MixerLayer as MixerLayer
from icl_lab.models.mixer_layer import MixerWeights as MixerWeights
from icl_lab.models.softmax_attention import SoftmaxLayer as SoftmaxLayer
from icl_lab.models.softmax_attention import SoftmaxSelfAttention as SoftmaxSelfAttention
from icl_lab.models.token_maps import MLP as MLP
from icl_lab.models.token_maps import Embedding as Embedding
from icl_lab.models.weighted_step import StepWeights as StepWeights
from icl_lab.models.weighted_step import WeightedStep as WeightedStep
from icl_lab.models.weights import LSAWeights as LSAWeights
from icl_lab.models.weights import PairedWeights as PairedWeights
from icl_lab.models.weights import SeparateWeights as SeparateWeights

if TYPE_CHECKING:
    from icl_lab.models.decoder import Decoder as Decoder
    from icl_lab.models.flax import LearnerModule as LearnerModule

# Flax is loaded by those who train with it.
__getattr__ = lazy.names(__name__, {"Decoder": "decoder", "LearnerModule": "flax"})
