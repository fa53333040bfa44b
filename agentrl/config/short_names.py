"""Short names of a run's settings: `steps` is `run.steps`, as `--steps 3` and as `train(..., steps=3)`."""

TRAIN = {
    "model": "model.path",
    "data": "data.train",
    "eval_data": "eval.data",
    "steps": "run.steps",
    "name": "run.name",
    "directory": "run.directory",
    "seed": "run.seed",
    "metrics": "run.metrics",
    "engine": "engine.kind",
    "cluster": "cluster.kind",
    "renderer": "rollout.format",
    "temperature": "rollout.temperature",
    "max_turns": "rollout.max_turns",
    "max_tokens": "rollout.max_tokens",
    "estimator": "estimator.kind",
    "loss": "loss.kind",
    "aggregator": "aggregator.kind",
    "sampler": "sampler.kind",
    "tracker": "tracker.kind",
    "shaper": "shaper.kind",
}
"""For `agentrl train`, and for the calls of Python, where a mapping in place of a value is a section."""
