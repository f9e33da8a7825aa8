"""Prompts of states that follow x_{t+1} = W x_t."""
