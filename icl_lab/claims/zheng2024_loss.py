"""Claims of Zheng et al. 2024 (arXiv 2405.16845): the population loss and which entries move."""
