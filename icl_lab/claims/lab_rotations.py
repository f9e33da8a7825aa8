"""Claims of the lab about x_{t+1} = W x_t + noise with a random orthogonal W."""
