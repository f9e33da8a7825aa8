"""Which algorithm a predictor runs: families that are fitted to it, and how many prompts tell them apart."""
