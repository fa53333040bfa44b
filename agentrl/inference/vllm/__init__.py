"""The engine that runs vLLM servers, and moves weights to them."""
