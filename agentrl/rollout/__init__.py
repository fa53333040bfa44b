"""A rollout plays one episode of an environment with a policy."""
