"""Token mixers as functions of keys, values, queries and gates; no prompt, no weights of a model.

`named` makes a mixer, `predictor` a function of a prompt, `MIXERS` has all of them by name; the classes are in their families.
"""

from icl_lab.mixers.base import CHUNK as CHUNK
from icl_lab.mixers.base import FORMS as FORMS
from icl_lab.mixers.base import Description as Description
from icl_lab.mixers.base import Gate as Gate
from icl_lab.mixers.base import Mixer as Mixer
from icl_lab.mixers.recurrent.linear import lightning_log_decay as lightning_log_decay
from icl_lab.mixers.recurrent.linear import retnet_log_decay as retnet_log_decay
from icl_lab.mixers.references import compare_references as compare_references
from icl_lab.mixers.registry import MIXERS as MIXERS
from icl_lab.mixers.registry import Predictor as Predictor
from icl_lab.mixers.registry import named as named
from icl_lab.mixers.registry import predictor as predictor
from icl_lab.mixers.signature import SYMMETRIES as SYMMETRIES
from icl_lab.mixers.signature import signature as signature
