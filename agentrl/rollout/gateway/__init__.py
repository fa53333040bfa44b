"""An OpenAI-compatible server through which any program plays an episode, and is trained."""
