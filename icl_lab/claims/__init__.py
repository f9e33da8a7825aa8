"""Executable theorems: one module a paper, on one small registry; `verify.run` runs them."""

from icl_lab.claims.check import Check as Check
from icl_lab.claims.claim import Claim as Claim
from icl_lab.claims.claim import Parameter as Parameter
