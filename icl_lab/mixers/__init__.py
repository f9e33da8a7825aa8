"""Token mixers as functions of keys, values, queries and gates; no prompt, no weights of a model.

`named` makes a mixer, `predictor` a function of a prompt, `MIXERS` has all of them by name.
"""

from icl_lab.mixers.base import CHUNK as CHUNK
from icl_lab.mixers.base import FORMS as FORMS
from icl_lab.mixers.base import Description as Description
from icl_lab.mixers.base import Gate as Gate
from icl_lab.mixers.base import Mixer as Mixer
from icl_lab.mixers.delta import KDA as KDA
from icl_lab.mixers.delta import DeltaNet as DeltaNet
from icl_lab.mixers.delta import GatedDeltaNet as GatedDeltaNet
from icl_lab.mixers.linear import GLA as GLA
from icl_lab.mixers.linear import LinearAttention as LinearAttention
from icl_lab.mixers.linear import Retention as Retention
from icl_lab.mixers.linear import SimpleGLA as SimpleGLA
from icl_lab.mixers.references import compare_references as compare_references
from icl_lab.mixers.registry import MIXERS as MIXERS
from icl_lab.mixers.registry import Predictor as Predictor
from icl_lab.mixers.registry import named as named
from icl_lab.mixers.registry import predictor as predictor
from icl_lab.mixers.signature import SYMMETRIES as SYMMETRIES
from icl_lab.mixers.signature import signature as signature
from icl_lab.mixers.softmax import Cache as Cache
from icl_lab.mixers.softmax import SoftmaxAttention as SoftmaxAttention
