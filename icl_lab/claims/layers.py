"""Claims of the lab about layers: moments of the Gram matrix, ridge and momentum as layers."""
