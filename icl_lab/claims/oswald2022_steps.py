"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): best step sizes, and risks away from the training law."""
