"""`smolmoe compare`: models on the same held-out text, with costs, intervals and a verdict."""
