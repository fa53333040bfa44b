"""An aggregator: long sequences weigh more than short ones, but less than their length.

agentrl train run.toml --aggregator.kind examples/parts/square_root.py:square_root
"""

import numpy as np


def square_root(counts):
    """[S] weight of a token of each sequence: the sequence's is the square root of its tokens [S]."""
    weights = np.sqrt(counts)
    return weights / weights.sum() / counts
