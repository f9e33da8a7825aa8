"""Claims of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): the layer, its start, and what holds along the flow."""
