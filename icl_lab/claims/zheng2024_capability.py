"""Claims of Zheng et al. 2024 (arXiv 2405.16845): what the trained layer can do, and its simulations."""
