"""Training dynamics with merged and with separate key and query matrices (arXiv 2501.16265)."""
