"""The best layer for nonlinear responses (Mahankali, Hashimoto, Ma, arXiv 2307.03576, Theorem 3)."""
