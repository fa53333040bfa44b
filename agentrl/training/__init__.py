"""Training: the loop from prompts to new weights, its state, and the way back to both."""
