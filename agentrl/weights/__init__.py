"""Weights as files: where a model lies, whether it is whole, and how versions are told apart."""
