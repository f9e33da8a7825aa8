"""icl_lab: the theory lab for in-context learning."""

__version__ = "0.1.0"
