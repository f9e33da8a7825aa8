"""One layer trained on prompts whose covariance is itself random (arXiv 2306.09927, Section 4.3)."""
