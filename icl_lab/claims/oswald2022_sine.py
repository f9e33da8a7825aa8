"""Claims of von Oswald et al. 2022 (arXiv 2212.07677)."""
