"""Claims of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): risk of the trained layer on prompts of any length and law."""
