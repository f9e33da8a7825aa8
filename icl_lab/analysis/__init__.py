"""Learned against theory: weights after the gauge is fixed, functions, sensitivities, risks, and conserved quantities.

Closed forms come in as arguments; nothing here imports `theory`. Results are float64 numpy.
"""

from icl_lab.analysis.functions import FunctionComparison as FunctionComparison
from icl_lab.analysis.functions import compare_functions as compare_functions
from icl_lab.analysis.functions import sensitivity as sensitivity
from icl_lab.analysis.gauge import ActiveParts as ActiveParts
from icl_lab.analysis.gauge import active_parts as active_parts
from icl_lab.analysis.gauge import balance as balance
from icl_lab.analysis.identify.identification import Identification as Identification
from icl_lab.analysis.identify.identification import identify as identify
from icl_lab.analysis.interpolation import interpolate as interpolate
from icl_lab.analysis.interpolation import key_query_scale as key_query_scale
from icl_lab.analysis.interpolation import losses_along_segment as losses_along_segment
from icl_lab.analysis.interpolation import rescaled as rescaled
from icl_lab.analysis.invariants import drift as drift
from icl_lab.analysis.invariants import invariants as invariants
from icl_lab.analysis.layers import distance_to_identity as distance_to_identity
from icl_lab.analysis.risk import RiskCurve as RiskCurve
from icl_lab.analysis.risk import Risks as Risks
from icl_lab.analysis.risk import lag_excess as lag_excess
from icl_lab.analysis.risk import risk_against_length as risk_against_length
from icl_lab.analysis.risk import sampled_risks as sampled_risks
from icl_lab.analysis.rollout import collapse_step as collapse_step
from icl_lab.analysis.rollout import rollout as rollout
from icl_lab.analysis.sampling import Estimate as Estimate
from icl_lab.analysis.sampling import Predictor as Predictor
from icl_lab.analysis.sampling import sample_mean as sample_mean
from icl_lab.analysis.weights import Comparison as Comparison
from icl_lab.analysis.weights import compare as compare
from icl_lab.analysis.weights import effective_preconditioner as effective_preconditioner
