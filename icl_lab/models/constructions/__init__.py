"""Weights that implement an estimator, by hand."""

from icl_lab.models.constructions import copying as copying
from icl_lab.models.constructions import series as series
from icl_lab.models.constructions.descent import gd_plus_plus as gd_plus_plus
from icl_lab.models.constructions.descent import gradient_descent as gradient_descent
from icl_lab.models.constructions.descent import preconditioned_gradient_descent as preconditioned_gradient_descent
