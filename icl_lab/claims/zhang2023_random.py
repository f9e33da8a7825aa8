"""Claims of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): a random covariance for each prompt."""
