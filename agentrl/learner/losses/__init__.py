"""Losses that the learner minimises."""
