"""Attention architectures, their weights and starts, and the weights that implement an estimator by hand."""

from icl_lab.models import constructions as constructions
from icl_lab.models import initializers as initializers
from icl_lab.models import mapped_layers as mapped_layers
from icl_lab.models.attention import SelfAttention as SelfAttention
from icl_lab.models.decoder import Decoder as Decoder
from icl_lab.models.linear_attention import LinearSelfAttention as LinearSelfAttention
from icl_lab.models.modules import Attention as Attention
from icl_lab.models.softmax_attention import SoftmaxSelfAttention as SoftmaxSelfAttention
from icl_lab.models.stack import Stack as Stack
from icl_lab.models.token_maps import MLP as MLP
from icl_lab.models.token_maps import Embedding as Embedding
from icl_lab.models.weights import LSAWeights as LSAWeights
from icl_lab.models.weights import PairedWeights as PairedWeights
from icl_lab.models.weights import SeparateWeights as SeparateWeights
