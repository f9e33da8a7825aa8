"""Closed forms of Zheng et al. 2024 (arXiv 2405.16845): one layer of linear attention trained on x_{t+1} = W x_t."""
