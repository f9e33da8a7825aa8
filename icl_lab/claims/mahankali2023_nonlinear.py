"""Claim of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): nonlinear responses, still one step of gradient descent."""
