"""Claims of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): the steps of the proof and what follows from it."""
