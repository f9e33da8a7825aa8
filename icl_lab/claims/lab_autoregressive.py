"""Claims of the lab about AR(p) series and one layer trained on random coefficients."""
