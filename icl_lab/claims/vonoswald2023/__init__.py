"""Claims of von Oswald et al. 2023, arXiv 2309.05858."""
