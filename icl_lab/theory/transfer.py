"""Risk of the trained layer on prompts of any label law (Zhang, Frei, Bartlett, arXiv 2306.09927, Theorem 4.2)."""
