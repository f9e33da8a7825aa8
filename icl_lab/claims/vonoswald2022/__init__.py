"""Claims of von Oswald et al. 2022, arXiv 2212.07677."""

ORDER = (
    "propositions",
    "constructions",
    "gdpp",
    "moments",
    "steps",
    "depth",
    "fits",
    "landscape",
    "plateau",
    "training",
    "softmax",
    "sine",
    "extensions",
)
"""Modules in the order of the source."""
