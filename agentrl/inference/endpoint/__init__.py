"""Chat endpoints that speak the OpenAI protocol: requests, replies, errors and budgets."""
