"""Claims of Zhang, Singh, Latham, Saxe 2025, arXiv 2501.16265."""
