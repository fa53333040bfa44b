"""The engine that runs inside the program, on transformers."""
