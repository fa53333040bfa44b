"""What `agentrl` offers to Python: runs, evaluations and single episodes, as blocking calls."""
