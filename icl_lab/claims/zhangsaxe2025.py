"""Claims of Zhang, Singh, Latham, Saxe 2025 (arXiv 2501.16265): training dynamics, merged and separate key and query."""
