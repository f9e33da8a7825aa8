"""Claims about the minima of one layer's exact loss: the global one and the spurious ones."""
