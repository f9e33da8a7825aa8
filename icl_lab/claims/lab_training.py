"""Claims about training that is not the structured flow: random starts, discrete descent, fresh prompts."""
